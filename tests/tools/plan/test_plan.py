# SPDX-License-Identifier: Apache-2.0
"""`kcmoe plan`: the published run, the table of hardware, and memory against compiled programs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from kcmoe import cli
from kcmoe.config import gin_files
from kcmoe.errors import UserError
from kcmoe.tools.plan import hardware, memory
from kcmoe.tools.plan.estimate import Planner, embedding_flops, mask_flops
from kcmoe.training import sharding
from kcmoe.training import state as states
from kcmoe.training.settings import Settings
from kcmoe.training.update import make_update, of_run

SMALL = (
    "NUM_ENCODER_LAYERS=2", "NUM_DECODER_LAYERS=2", "EMBED_DIM=64", "MLP_DIM=128", "NUM_HEADS=2",
    "NUM_EMBEDDINGS=512", "NUM_EXPERTS=4", "BATCH_SIZE=32",
    "TASK_FEATURE_LENGTHS={'inputs': 128, 'targets': 32}",
)  # fmt: skip


# The published run, as words of a command and as files.
BASE = ("--size=base", "--task=pretrain", "--gin_file=configs/runs/pretrain.gin")
BASE_FILES = ["configs/sizes/base.gin", "configs/tasks/pretrain.gin", "configs/runs/pretrain.gin"]


def settings(file: str, *bindings: str) -> Settings:
    files = BASE_FILES if file == "base" else [f"configs/runs/{file}"]
    macros = gin_files.parse(
        ["configs/engine/engine.gin", *files], [*bindings, "MODEL_DIR='unused'"]
    )
    return Settings.from_macros(macros)


def planner(file: str, name: str, stack: Any, *bindings: str) -> Planner:
    return Planner(settings(file, *bindings), hardware.parse(name), stack, 0.44, packed=True)


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The report of a plan of the published run on the hardware it had."""
    run = ["plan", *BASE, "--hardware=v3-8", "--json"]
    assert cli.run([*run, *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_published_run_is_as_large_as_published(capsys: pytest.CaptureFixture[str]) -> None:
    report = planned(capsys)
    assert report["parameters"] == 700_641_024
    assert report["active_parameters"] == pytest.approx(0.30e9, rel=0.02)
    assert report["flops_per_step"] == pytest.approx(1.28e14, rel=0.02)  # worked out by hand
    assert report["fits"] in ("yes", "tight")  # it ran
    assert report["mesh"] == {"data": 1, "expert": 8, "model": 1}


def test_time_is_arithmetic_over_the_share_of_the_peak(capsys: pytest.CaptureFixture[str]) -> None:
    report = planned(capsys, "--utilisation=0.5")
    peak = 8 * 52.5e12  # FLOP/s of a v3-8 board, bfloat16
    assert report["step_s"] == pytest.approx(report["flops_per_step"] / (0.5 * peak))
    assert report["days"] == pytest.approx(1_000_000 * report["step_s"] / 86_400)
    assert report["device_hours"] == pytest.approx(8 * 24 * report["days"])


def test_the_usual_share_of_a_tpu_is_what_the_published_run_got(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """1.45 steps/s were published. That is where the default comes from, so it forecasts nothing here."""
    report = planned(capsys)
    got = 1.45 * report["flops_per_step"] / report["peak_flops"]
    assert report["utilisation"] == pytest.approx(got, abs=0.01)


@pytest.mark.parametrize(
    ("name", "devices", "hosts", "platform"),
    [
        ("v3-8", 8, 1, "tpu"),
        ("v4-32", 16, 4, "tpu"),
        ("v5e-256", 256, 32, "tpu"),
        ("v6e-256", 256, 64, "tpu"),
        ("v6e-8", 8, 1, "tpu"),
        ("h200x8", 8, 1, "gpu"),
        ("h100", 1, 1, "gpu"),
        ("cpu", 1, 1, "cpu"),
    ],
)
def test_names_of_hardware(name: str, devices: int, hosts: int, platform: str) -> None:
    machine = hardware.parse(name)
    assert (machine.devices, machine.hosts, machine.platform) == (devices, hosts, platform)


@pytest.mark.parametrize("name", ["v9-8", "v4-7", "h100x0", "h10", "v3-0", ""])
def test_unknown_hardware_is_a_clear_error(name: str) -> None:
    with pytest.raises(UserError, match="--hardware"):
        hardware.parse(name)


@pytest.mark.devices(4)
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_layout_is_the_mesh_of_the_engine(devices: int) -> None:
    config = settings("pretrain_tiny.gin").model
    mesh = sharding.make_mesh(config, 2, jax.devices()[:devices])
    how = memory.mesh_shape(config, devices, 2, 1)
    assert (how.data, how.expert) == (mesh.shape["data"], mesh.shape["expert"])


def test_layout_refuses_what_does_not_divide() -> None:
    config = settings("base").model
    with pytest.raises(UserError, match="NUM_MODEL_PARTITIONS = 3 does not divide the 8 devices"):
        memory.mesh_shape(config, 8, 16, 3)
    with pytest.raises(UserError, match="NUM_MODEL_PARTITIONS = 8 does not divide NUM_HEADS = 12"):
        memory.mesh_shape(config, 8, 16, 8)


@pytest.mark.devices(4)
def test_state_bytes_are_those_of_the_sharded_state() -> None:
    run = settings("pretrain_tiny.gin")
    config, optimizer = run.model, run.optimizer
    mesh = sharding.make_mesh(config, 16, jax.devices()[:4])
    shapes = states.state_shapes(config, optimizer)
    flat = states.to_flat(shapes)
    shards = states.to_flat(sharding.state_shardings(mesh, shapes, optimizer))
    expected = sum(
        leaf.dtype.itemsize * int(jnp.prod(jnp.array(shards[path].shard_shape(leaf.shape))))
        for path, leaf in flat.items()
        if path != "state/step"
    )
    assert (
        sum(memory.state_bytes(config, optimizer, memory.mesh_shape(config, 4, 16, 1))) == expected
    )


def test_tokens_travel_as_they_would_on_the_hardware() -> None:
    """256 tokens without dropping any: a CPU takes the grouped product, what was not measured does not."""
    run = settings("pretrain_tiny.gin", *SMALL, "ROUTING='dropless'")

    def kept(dispatch: Any, platform: str) -> int:
        config = dataclasses.replace(run.model, dispatch=dispatch)
        lengths = {"inputs": 32, "targets": 32}
        return memory.activation_bytes(
            config, run.losses, 8, lengths, packed=True, platform=platform
        )

    assert kept("gather", "gpu") != kept("grouped", "gpu")
    assert kept("auto", "gpu") == kept("gather", "gpu")
    assert kept("auto", "cpu") == kept("grouped", "cpu")


@pytest.mark.slow
def test_small_memory_gets_settings_that_fit() -> None:
    plan = planner("pretrain_tiny.gin", "rtx4090", "engine", *SMALL, "BATCH_SIZE=65536")
    asked = plan.asked(1)
    assert plan.fits(plan.estimate(asked)) == "no"
    remedies = plan.remedies(asked)
    assert remedies
    assert all(plan.fits(other) == "yes" for other in remedies)
    assert any(other.choice.microbatches > 1 and not other.choice.remat for other in remedies)


def test_accumulation_divides_activations_and_adds_the_sum_of_gradients() -> None:
    whole = planner("pretrain_tiny.gin", "h100", "engine", *SMALL)
    parts = planner("pretrain_tiny.gin", "h100", "engine", *SMALL, "NUM_MICROBATCHES=4")
    one, four = (plan.estimate(plan.asked(1)).memory for plan in (whole, parts))
    assert four.activations < one.activations / 2
    assert four.gradients >= one.gradients + one.parameters


@pytest.mark.parametrize(
    "start",
    ["--start_step=10000", "--gin.INITIAL_CHECKPOINT_PATH='gs://bucket/tiny/checkpoint_10000/'"],
)
def test_steps_before_fine_tuning_are_not_counted(
    start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ["plan", "--gin_file=configs/runs/finetune_nsmc_tiny.gin", "--hardware=h100"]
    assert cli.run([*tune, start, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["start_step"], report["steps"]) == (10_000, 4_000)
    assert cli.run([*tune, start]) == 0
    assert "4,000 steps after 10,000 already done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "INITIAL_CHECKPOINT_PATH is not set, and TRAIN_STEPS includes"),
        (["--gin.INITIAL_CHECKPOINT_PATH='exported'"], "exported does not say its step"),
    ],
)
def test_unknown_steps_before_fine_tuning_are_asked_for(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ["plan", "--size=base", "--task=nsmc", "--gin_file=configs/runs/finetune.gin"]
    tune += ["--hardware=v5e-8", *arguments]
    assert cli.run([*tune, "--gin.TRAIN_STEPS=1001000"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "add --start_step=N" in error
    assert cli.run([*tune, "--json"]) == 0  # FINETUNE_STEPS do not depend on them
    assert json.loads(capsys.readouterr().out)["steps"] == 1_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hardware=h100x8", "--gin.BATCH_SIZE=12"], "BATCH_SIZE = 12 is not a multiple of"),
        (["--hardware=a100x1"], "Did you mean a100-40x1 or a100-80x1?"),
        (["--hardware=h100x0"], "Did you mean h100x1"),
        (["--hardware=h100", "--utilisation=44"], "a share is above 0"),
        (["--hardware=v3-8", "--start_step=2000000"], "not beyond step 2000000"),
        (["--hardware=h100", "--gin.NUM_EXPRTS=4"], "NUM_EXPERTS"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", *BASE, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.devices(4)
@pytest.mark.parametrize(("size", "devices"), [("tiny", 1), ("tiny", 4), ("mini", 1)])
def test_memory_is_that_of_the_compiled_step(size: str, devices: int) -> None:
    """Activations and gradients against XLA's own account of the sharded program."""
    lengths = "TASK_FEATURE_LENGTHS={'inputs': 128, 'targets': 32}"
    run = settings(f"pretrain_{size}.gin", lengths, "BATCH_SIZE=32")
    mesh = sharding.make_mesh(run.model, 4, jax.devices()[:devices])
    shapes = states.state_shapes(run.model, run.optimizer)
    shards = sharding.state_shardings(mesh, shapes, run.optimizer)
    state = jax.tree.map(
        lambda leaf, shard: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shard),
        shapes,
        shards,
    )
    rows = {
        name: jax.ShapeDtypeStruct(
            (1, *leaf.shape), leaf.dtype, sharding=sharding.named(mesh, None, "batch")
        )
        for name, leaf in memory.batch_shapes(32, 128, 32, packed=True).items()
    }
    update = jax.jit(
        make_update(of_run(run, mesh=mesh)), donate_argnums=0, out_shardings=(shards, None)
    )
    compiled = update.lower(state, rows).compile().memory_analysis()
    how = memory.mesh_shape(run.model, devices, 4, 1)
    parameters, optimizer = memory.state_bytes(run.model, run.optimizer, how)
    kept = memory.activation_bytes(
        run.model,
        run.losses,
        32,
        run.run.lengths,
        packed=True,
        platform="cpu",
        devices=devices,
    )
    assert parameters + optimizer == pytest.approx(compiled.argument_size_in_bytes, rel=0.02)
    gradients = memory.gradient_bytes(parameters, kept, 1, "cpu")
    assert gradients + kept == pytest.approx(compiled.temp_size_in_bytes, rel=0.1)


@pytest.mark.parametrize(
    ("stack", "name", "experts", "gib"),
    [
        ("t5x", "v3-8", 16, 11.70),
        ("t5x", "v5e-8", 16, 11.69),
        ("t5x", "v6e-8", 16, 11.66),
        ("t5x", "v5e-256", 16, 1.56),
        ("t5x", "v4-32", 16, 7.91),
        ("t5x", "v4-32", 64, 8.37),
        ("engine", "v3-8", 16, 10.00),
        ("engine", "v5e-8", 16, 9.89),
        ("engine", "v6e-8", 16, 9.99),
        ("engine", "v4-32", 16, 5.58),
        ("engine", "v5e-256", 16, 1.61),
    ],
)
def test_base_takes_what_the_tpus_compiler_said(
    stack: str, name: str, experts: int, gib: float
) -> None:
    """The steps of the engine and of the real T5X + Flaxformer, compiled by libtpu 0.0.42.1."""
    plan = planner("base", name, stack, f"NUM_EXPERTS={experts}", "NUM_EXPERT_PARTITIONS=16")
    assert plan.estimate(plan.asked(1)).memory.total / 2**30 == pytest.approx(gib, rel=0.1)


def test_t5x_is_charged_for_its_one_hot_vectors() -> None:
    """Counted in the compiled step: 1.6e13 FLOP of the embedding, beside the masks."""
    plan = planner("base", "v3-8", "t5x")
    config, tokens = plan.settings.model, 256 * (512 + 114)
    assert embedding_flops(config, tokens) == pytest.approx(1.6e13, rel=0.02)
    masks = mask_flops(config, 256, 512, 114)
    assert plan.estimate(plan.asked(1)).extra_flops == masks + embedding_flops(config, tokens)


@pytest.mark.parametrize(("size", "said"), [("tiny", True), ("base", False)])
def test_time_of_arithmetic_alone_is_called_so(
    size: str, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = BASE if size == "base" else ("--gin_file=configs/runs/pretrain_tiny.gin",)
    assert cli.run(["plan", *run, "--hardware=h100x8"]) == 0
    printed = capsys.readouterr().out
    assert ("arithmetic alone" in printed) == said
    assert "e+0" not in printed.split("time ")[1]
