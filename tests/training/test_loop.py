# SPDX-License-Identifier: Apache-2.0
"""The train loop on the toy model: resume is uninterrupted, records are whole, the best is kept."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

from kcmoe import checkpoint as checkpoints
from kcmoe.config import gin_files
from kcmoe.errors import UserError
from kcmoe.training import state as states
from kcmoe.training.loop import Outcome, train
from kcmoe.training.observing import NonFiniteError
from kcmoe.training.start import Start, other_factors
from kcmoe.training.validation import TaskMetric

TIMES = ("step_s", "tokens_per_s", "model_flops_per_s")


@pytest.fixture(autouse=True)
def _one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])


def run(
    toy: ModuleType, folder: Path, after_step: Callable[[int], None] | None = None, **changes: Any
) -> Outcome:
    """One start of the toy run; `after_step(n)` is called while batch n+1 is being made."""
    settings = toy.settings(folder, **changes)
    inputs = toy.inputs(settings.run.batch_size)
    if after_step is not None:

        class Watched(toy.ToyBatches):
            def iterate(self, start_step: int, stop_step: int, workers: int) -> Iterator[Any]:
                for step in range(start_step, stop_step):
                    after_step(step)
                    yield self.at(step)

        inputs = dataclasses.replace(inputs, batches=Watched(settings.run.batch_size))
    said: list[str] = []
    outcome = train(settings, inputs, say=said.append)
    (folder / "said.txt").write_text("\n".join(said))
    return outcome


def leaves(folder: Path, step: int) -> dict[str, np.ndarray]:
    reader = checkpoints.open_checkpoint(folder / f"checkpoint_{step}")
    return {path: reader.read(path) for path in reader.tree()}


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    assert one.keys() == other.keys()
    return all(one[path].tobytes() == other[path].tobytes() for path in one)


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps that nobody disturbed."""
    import sys

    folder = tmp_path_factory.mktemp("whole")
    toy = next(m for n, m in sys.modules.items() if n.endswith("training.conftest"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        run(toy, folder)
    return folder


def test_a_run_leaves_what_the_design_says(toy: ModuleType, whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {"config.gin", "metrics.jsonl", "train", "eval", "best.json"} <= names
    assert "checkpoint_6" in names
    train_records, eval_records = toy.records(whole), toy.records(whole, "eval")
    assert [r["step"] for r in train_records] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in eval_records] == [2, 4, 6]
    last = train_records[-1]
    assert last["loss"] < train_records[0]["loss"]
    assert {*TIMES, "learning_rate", "grad_norm", "token_accuracy", "z_loss"} <= last.keys()
    for layer in ("encoder/layers_0/mlp", "decoder/layers_0/mlp"):
        router = {k.removeprefix(f"router/{layer}/"): v for k, v in last.items() if layer in k}
        assert len(router["expert_load"]) == 4
        assert sum(router["expert_load"]) == pytest.approx(1)
        assert {"router_entropy", "dead_experts", "first_choice_dropped"} <= router.keys()
        assert {"second_choice_dropped", "auxiliary_loss", "router_z_loss"} <= router.keys()
    weighted = [v for k, v in last.items() if k.endswith("/auxiliary_loss_weighted")]
    assert sum(weighted) == pytest.approx(last["experts/auxiliary_loss"], rel=1e-5)
    said = (whole / "said.txt").read_text()
    assert "8 rows x (12 inputs + 8 targets) = 160 tokens" in said
    assert "fresh weights from RANDOM_SEED 0" in said
    macros = gin_files.parse([str(whole / "config.gin")])
    assert macros["NUM_EXPERTS"] == 4
    assert macros["TASK_FEATURE_LENGTHS"] == {"inputs": 12, "targets": 8}


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_stopped_and_resumed_is_never_stopped(
    toy: ModuleType, tmp_path: Path, whole: Path, stop_at: int
) -> None:
    def stop(step: int) -> None:
        if step == stop_at - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = run(toy, tmp_path, after_step=stop)
    assert stopped.stopped_by == "SIGTERM"
    assert stopped.step == stop_at
    assert (tmp_path / f"checkpoint_{stop_at}").is_dir()
    assert run(toy, tmp_path).stopped_by == ""
    assert "continued from" in (tmp_path / "said.txt").read_text()
    assert same_bits(leaves(tmp_path, 6), leaves(whole, 6))
    assert not same_bits(leaves(tmp_path, 6), {**leaves(whole, 4)})
    resumed, expected = without_times(toy.records(tmp_path)), without_times(toy.records(whole))
    assert resumed == expected
    # Who asks to stop does not wait for an evaluation, though one was due after step 2.
    evaluations = [r for r in toy.records(whole, "eval") if r["step"] != stop_at]
    assert toy.records(tmp_path, "eval") == evaluations
    assert len(evaluations) == (2 if stop_at == 2 else 3)


def test_killed_between_checkpoints_repeats_no_record(
    toy: ModuleType, tmp_path: Path, whole: Path
) -> None:
    class Killed(BaseException):
        pass

    def kill(step: int) -> None:
        if step == 5:  # records of steps 3 to 4 are written, checkpoint 4 is saved
            raise Killed

    with pytest.raises(Killed):
        run(toy, tmp_path, after_step=kill)
    assert checkpoints.latest(tmp_path).name == "checkpoint_4"
    run(toy, tmp_path)
    assert same_bits(leaves(tmp_path, 6), leaves(whole, 6))
    assert without_times(toy.records(tmp_path)) == without_times(toy.records(whole))


def test_finished_run_has_nothing_to_do(toy: ModuleType, whole: Path) -> None:
    files = [whole / "metrics.jsonl", whole / "config.gin"]
    before = [file.read_bytes() for file in files]
    assert run(toy, whole, LEARNING_RATE=0.5).step == 6
    assert [file.read_bytes() for file in files] == before
    assert "nothing: TRAIN_STEPS = 6 is reached" in (whole / "said.txt").read_text()


def test_a_run_that_needs_weights_does_not_begin_without(toy: ModuleType, tmp_path: Path) -> None:
    settings = toy.settings(tmp_path / "run")
    settings.macros.required["INITIAL_CHECKPOINT_PATH"] = "configs/runs/finetune.gin:12"
    with pytest.raises(UserError, match="INITIAL_CHECKPOINT_PATH is not set"):
        train(settings, toy.inputs(settings.run.batch_size))
    assert not (tmp_path / "run").exists()


def test_best_checkpoint_is_named_and_outlives_newer_ones(toy: ModuleType, tmp_path: Path) -> None:
    scores = iter([0.3, 0.9, 0.5, 0.4, 0.2])

    def task_metric(settings: Any, inputs: Any) -> Any:
        del settings, inputs
        return TaskMetric(lambda params: {"accuracy_rank": next(scores)}, ("accuracy_rank",))

    settings = toy.settings(tmp_path, TRAIN_STEPS=10, CHECKPOINTS_TO_KEEP=2)
    outcome = train(settings, toy.inputs(), make_task_metric=task_metric, say=lambda line: None)
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == outcome.best
    assert (best["checkpoint"], best["metric"], best["value"]) == (
        "checkpoint_4", "accuracy_rank", 0.9,
    )  # fmt: skip
    kept = [path.name for path in checkpoints.all_checkpoints(tmp_path)]
    assert kept == ["checkpoint_4", "checkpoint_8", "checkpoint_10"]


def test_a_resume_without_validation_keeps_the_best(toy: ModuleType, tmp_path: Path) -> None:
    scores = iter([0.9, 0.1])

    def task_metric(settings: Any, inputs: Any) -> Any:
        del settings, inputs
        return TaskMetric(lambda params: {"accuracy_rank": next(scores)}, ("accuracy_rank",))

    settings = toy.settings(tmp_path, TRAIN_STEPS=4, CHECKPOINTS_TO_KEEP=1)
    train(settings, toy.inputs(), make_task_metric=task_metric, say=lambda line: None)
    best = (tmp_path / "best.json").read_text()
    settings = toy.settings(tmp_path, TRAIN_STEPS=6, CHECKPOINTS_TO_KEEP=1, EVAL_PERIOD=0)
    blind = dataclasses.replace(toy.inputs(), held_out=())  # as `open_inputs` for EVAL_PERIOD = 0
    outcome = train(settings, blind, say=lambda line: None)
    assert (tmp_path / "best.json").read_text() == best
    assert outcome.best == json.loads(best)
    kept = [path.name for path in checkpoints.all_checkpoints(tmp_path)]
    assert kept == [json.loads(best)["checkpoint"], "checkpoint_6"] == ["checkpoint_2", kept[1]]


def test_non_finite_loss_stops_with_the_step_and_keeps_the_last_good_checkpoint(
    toy: ModuleType, tmp_path: Path
) -> None:
    run(toy, tmp_path, TRAIN_STEPS=2)
    diverging = leaves(tmp_path, 2)
    diverging["target/decoder/logits_dense/kernel"] *= np.float32(1e37)
    checkpoints.save(tmp_path, 2, diverging)
    with pytest.raises(NonFiniteError, match=r"is (nan|inf) at step 3"):
        run(toy, tmp_path)
    assert checkpoints.latest(tmp_path).name == "checkpoint_2"
    assert [record["step"] for record in toy.records(tmp_path)] == [1, 2, 3]


def test_fine_tuning_restores_everything_and_counts_on(
    toy: ModuleType, tmp_path: Path, whole: Path
) -> None:
    start = str(whole / "checkpoint_6")
    changes = {"INITIAL_CHECKPOINT_PATH": start, "MIXTURE_OR_TASK_NAME": "another"}
    with pytest.raises(UserError, match=r"already at step 6; .*TRAIN_STEPS=12"):
        run(toy, tmp_path / "short", **changes)
    assert not (tmp_path / "short").exists() or not list((tmp_path / "short").glob("*.gin"))
    (tmp_path / "tuned").mkdir()
    outcome = run(toy, tmp_path / "tuned", TRAIN_STEPS=7, FREEZE=["token_embedder/.*"], **changes)
    assert outcome.step == 7
    before, after = leaves(whole, 6), leaves(tmp_path / "tuned", 7)
    frozen = [path for path in before if "token_embedder/" in path]
    assert len(frozen) == 5  # the parameter and its m, v, v_col, v_row
    assert same_bits({p: before[p] for p in frozen}, {p: after[p] for p in frozen})
    moved = "target/decoder/logits_dense/kernel"
    assert not np.array_equal(before[moved], after[moved])
    # data starts at its first batch, wherever the step counter stands
    extra = json.loads((tmp_path / "tuned/checkpoint_7/training.json").read_text())
    assert extra["data_position"] == {"step": 7, "row": 8}


def test_weights_alone_start_a_fresh_optimizer_and_say_so(
    toy: ModuleType, tmp_path: Path, whole: Path
) -> None:
    weights = {p: x for p, x in leaves(whole, 6).items() if p.startswith("target/")}
    start = checkpoints.save(tmp_path / "bare", 6, {**weights, "state/step": np.int32(6)})
    changes = {"INITIAL_CHECKPOINT_PATH": str(start), "NUM_MICROBATCHES": 2}
    run(toy, tmp_path / "tuned", TRAIN_STEPS=7, **changes)
    said = (tmp_path / "tuned/said.txt").read_text()
    assert f"step 6, weights of {start}, fresh optimizer state" in said
    assert "warning" not in said


def test_another_factor_of_the_gradients_is_told_once(
    toy: ModuleType, tmp_path: Path, whole: Path
) -> None:
    def warnings(folder: Path, **changes: Any) -> list[str]:
        run(toy, folder, **changes)
        lines = (folder / "said.txt").read_text().splitlines()
        return [line for line in lines if line.startswith("warning ")]

    start = {"INITIAL_CHECKPOINT_PATH": str(whole / "checkpoint_6")}
    (first,) = warnings(tmp_path, TRAIN_STEPS=7, NUM_MICROBATCHES=2, **start)
    assert f"NUM_MICROBATCHES was 1 where {whole}/checkpoint_6 was trained and is 2 here" in first
    assert "start 4 times too small, which multiplies the learning rate by up to 2" in first
    assert warnings(tmp_path, TRAIN_STEPS=8, NUM_MICROBATCHES=2) == []
    (back,) = warnings(tmp_path, TRAIN_STEPS=9)
    assert (
        "start 4 times too large, which divides the learning rate by up to 2, for about 5" in back
    )
    assert back.endswith("steps; set NUM_MICROBATCHES = 2 to avoid it")
    (experts,) = other_factors(
        Start(6, str(whole / "checkpoint_6"), optimizer_kept=True),
        toy.settings(whole, NUM_EXPERT_PARTITIONS=1),
    )
    assert "NUM_EXPERT_PARTITIONS was 4" in experts
    assert "multiplies gradients of experts, so their second moments start 16 times" in experts


def test_a_decay_that_starts_later_than_the_run_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"STEP_OFFSET = 1 is past step 0, .*; set it to 0 or less"):
        run(toy, tmp_path / "new", STEP_OFFSET=1)
    assert not (tmp_path / "new").exists()
    toy.settings(tmp_path, STEP_OFFSET=6).optimizer.check_start(6)


def test_other_sizes_are_refused_with_what_differs(
    toy: ModuleType, tmp_path: Path, whole: Path
) -> None:
    with pytest.raises(UserError, match="was begun with other settings: EMBED_DIM 16 -> 24"):
        run(toy, whole, EMBED_DIM=24)
    start = str(whole / "checkpoint_6")
    with pytest.raises(UserError, match="EMBED_DIM 16 here, 24 expected") as error:
        run(toy, tmp_path / "x", EMBED_DIM=24, TRAIN_STEPS=9, INITIAL_CHECKPOINT_PATH=start)
    assert "extra_mlp/wi_0/kernel" in str(error.value)  # some of the leaves are named


def test_two_runs_cannot_share_a_directory(toy: ModuleType, tmp_path: Path) -> None:
    def second(step: int) -> None:
        if step == 0:
            with pytest.raises(UserError, match="another kcmoe train is writing"):
                run(toy, tmp_path)

    assert run(toy, tmp_path, after_step=second, TRAIN_STEPS=1).step == 1


def test_resume_matches_a_state_of_t5x_shape(whole: Path, toy: ModuleType) -> None:
    expected = states.to_flat(
        states.state_shapes(toy.settings(whole).model, toy.settings(whole).optimizer)
    )
    saved = leaves(whole, 6)
    assert {p: x.shape for p, x in saved.items()} == {p: x.shape for p, x in expected.items()}
    assert int(saved["state/step"]) == 6


def test_bfloat16_with_remat_and_microbatches(toy: ModuleType, tmp_path: Path) -> None:
    """What base pretrains with: the losses are float32's to bfloat16's precision, the state is float32."""
    saving = {"REMAT": True, "NUM_MICROBATCHES": 2}
    plain, half = tmp_path / "float32", tmp_path / "bfloat16"
    run(toy, plain, **saving)
    outcome = run(toy, half, ACTIVATION_DTYPE="bfloat16", **saving)
    assert {leaf.dtype.name for leaf in outcome.state.params.values()} == {"float32"}
    losses = [[record["loss"] for record in toy.records(folder)] for folder in (plain, half)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def test_a_damaged_newest_checkpoint_names_the_sound_one_before(
    toy: ModuleType, tmp_path: Path, whole: Path
) -> None:
    for name in ("config.gin", "checkpoint_4", "checkpoint_6"):
        copy = shutil.copytree if (whole / name).is_dir() else shutil.copy
        copy(whole / name, tmp_path / name)
    newest, before = tmp_path / "checkpoint_6", tmp_path / "checkpoint_4"
    (newest / "training.json").write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match=rf"{before} before it is sound: .* mv {newest} "):
        run(toy, tmp_path, TRAIN_STEPS=8)
    (newest / "state/manifest.ocdbt").write_bytes(b"")
    (before / "state/manifest.ocdbt").write_bytes(b"")
    with pytest.raises(UserError, match=r"No checkpoint before it .* is sound: begin anew"):
        run(toy, tmp_path, TRAIN_STEPS=8)
