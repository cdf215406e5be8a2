# SPDX-License-Identifier: Apache-2.0
"""`kcmoe plan`: the published run, the table of hardware, and memory against compiled programs."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from kcmoe import cli
from kcmoe.config import gin_files
from kcmoe.errors import UserError
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.tools.plan import hardware, memory
from kcmoe.tools.plan.estimate import Planner
from kcmoe.training import schedule, sharding
from kcmoe.training import state as states
from kcmoe.training.losses import loss_and_metrics
from kcmoe.training.settings import Settings
from kcmoe.training.step import StepParts, make_update

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


def test_published_run_takes_eight_days_on_a_v3_8(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.run(["plan", *BASE, "--hardware=v3-8", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == 0
    assert report["parameters"] == 700_641_024
    assert report["active_parameters"] == pytest.approx(0.30e9, rel=0.02)
    assert report["flops_per_step"] == pytest.approx(1.28e14, rel=0.02)  # worked out by hand
    assert 1 / report["step_s"] == pytest.approx(1.45, rel=0.03)  # published
    assert report["days"] == pytest.approx(8, rel=0.03)  # published
    assert report["fits"] in ("yes", "tight")  # it ran
    assert report["mesh"] == {"data": 1, "expert": 8, "model": 1}


@pytest.mark.parametrize(
    ("name", "devices", "hosts"),
    [("v3-8", 8, 1), ("v4-32", 16, 4), ("v5e-256", 256, 32), ("h200x8", 8, 1), ("h100", 1, 1)],
)
def test_names_of_hardware(name: str, devices: int, hosts: int) -> None:
    machine = hardware.parse(name)
    assert (machine.devices, machine.hosts) == (devices, hosts)


@pytest.mark.parametrize("name", ["v9-8", "v4-7", "h100x0", "h10", "v3-0", ""])
def test_unknown_hardware_is_a_clear_error(name: str) -> None:
    with pytest.raises(UserError, match="--hardware"):
        hardware.parse(name)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_layout_is_the_mesh_of_the_engine(devices: int) -> None:
    config = settings("pretrain_tiny.gin").model
    mesh = sharding.make_mesh(config, 2, jax.devices()[:devices])
    how = memory.layout(config, devices, 2, 1)
    assert (how.data, how.expert) == (mesh.shape["data"], mesh.shape["expert"])


def test_layout_refuses_what_does_not_divide() -> None:
    config = settings("base").model
    with pytest.raises(UserError, match="NUM_MODEL_PARTITIONS = 3 does not divide the 8 devices"):
        memory.layout(config, 8, 16, 3)
    with pytest.raises(UserError, match="NUM_MODEL_PARTITIONS = 8 does not divide NUM_HEADS = 12"):
        memory.layout(config, 8, 16, 8)


def test_state_bytes_are_those_of_the_sharded_state() -> None:
    config = settings("pretrain_tiny.gin").model
    mesh = sharding.make_mesh(config, 16, jax.devices()[:4])
    flat = states.to_flat(states.state_shapes(config))
    shards = sharding.state_shardings(mesh, flat)
    expected = sum(
        leaf.dtype.itemsize * int(jnp.prod(jnp.array(shards[path].shard_shape(leaf.shape))))
        for path, leaf in flat.items()
        if path != "state/step"
    )
    assert sum(memory.state_bytes(config, memory.layout(config, 4, 16, 1))) == expected


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
        (["--hardware=v4-32", "--stack=engine"], "one host"),
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
@pytest.mark.parametrize(("size", "devices"), [("tiny", 1), ("tiny", 4), ("mini", 1)])
def test_memory_is_that_of_the_compiled_step(size: str, devices: int) -> None:
    """Activations and gradients against XLA's own account of the sharded program."""
    lengths = "TASK_FEATURE_LENGTHS={'inputs': 128, 'targets': 32}"
    run = settings(f"pretrain_{size}.gin", lengths, "BATCH_SIZE=32")
    mesh = sharding.make_mesh(run.model, 4, jax.devices()[:devices])
    shapes = states.state_shapes(run.model)
    shards = states.from_flat(sharding.state_shardings(mesh, states.to_flat(shapes)))
    model = EncoderDecoder(run.model)
    parts = StepParts(
        loss_fn=lambda p, batch, key: loss_and_metrics(model, p, batch, run.losses, key),
        optimizer=run.optimizer,
        learning_rate=lambda step: schedule.learning_rate(step, run.schedule),
        num_expert_partitions=4,
        seed=0,
    )
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
    update = jax.jit(make_update(parts), donate_argnums=0, out_shardings=(shards, None))
    compiled = update.lower(state, rows).compile().memory_analysis()
    how = memory.layout(run.model, devices, 4, 1)
    parameters, optimizer = memory.state_bytes(run.model, how)
    kept = memory.activation_bytes(
        run.model, run.losses, 32 // devices, run.run.lengths, packed=True, fused=False
    )
    assert parameters + optimizer == pytest.approx(compiled.argument_size_in_bytes, rel=0.02)
    gradients = memory.gradient_bytes(parameters, kept, 1)
    assert gradients + kept == pytest.approx(compiled.temp_size_in_bytes, rel=0.1)


@pytest.mark.parametrize(("size", "said"), [("tiny", True), ("base", False)])
def test_time_of_arithmetic_alone_is_called_so(
    size: str, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = BASE if size == "base" else ("--gin_file=configs/runs/pretrain_tiny.gin",)
    assert cli.run(["plan", *run, "--hardware=h100x8"]) == 0
    printed = capsys.readouterr().out
    assert ("arithmetic alone" in printed) == said
    assert "e+0" not in printed.split("time ")[1]
