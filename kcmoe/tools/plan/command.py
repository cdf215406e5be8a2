# SPDX-License-Identifier: Apache-2.0
"""`kcmoe plan`: what a run needs on some hardware, before any of it is rented."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kcmoe.config import arguments
from kcmoe.errors import UserError
from kcmoe.io.wording import gibibytes

if TYPE_CHECKING:
    from kcmoe.config.gin_files import Macros
    from kcmoe.tools.plan.estimate import Forecast, Planner, Stack

_EPILOG = """\
examples:
  kcmoe plan --size=base --task=pretrain --gin_file=configs/runs/pretrain.gin --hardware=v3-8
  kcmoe plan --gin_file=configs/runs/pretrain_mini.gin --hardware=h100x1 --gin.NUM_MICROBATCHES=8
  kcmoe plan --size=base --task=nsmc --gin_file=configs/runs/finetune.gin --hardware=v5e-8

Prints parameters, arithmetic, memory per device, time and device-hours. Exit status 0 if the run fits,
1 if it does not; then the settings that make it fit follow. TPUs and GPUs are counted as XLA fuses there.
"""

# Share of the peak that useful arithmetic gets, where nobody says better.
_TPU_UTILISATION = 0.44  # the published run: 1.45 steps/s on a v3-8
_OTHER_UTILISATION = 0.35  # assumed
DAY_S = 86400
_SHORT_STEP_S = 1e-3  # about what it takes to start a step on an accelerator
# Macros that a run needs and a plan does not.
_NOT_NEEDED = ("MODEL_DIR", "DATA_DIR", "INITIAL_CHECKPOINT_PATH", "CHECKPOINT_PATH")


def main(argv: Sequence[str]) -> int:
    """Returns 0 if the run fits, 1 if not."""
    parser = arguments.Parser(
        prog="kcmoe plan",
        description="Memory, time and device-hours of a run on given hardware; allocates nothing.",
        epilog=_EPILOG,
    )
    arguments.add_run_arguments(parser)
    parser.add_argument(
        "--hardware", required=True, help="e.g. cpu, h100x1, h200x8, v3-8, v4-32, v5e-256"
    )
    parser.add_argument("--stack", choices=("auto", "engine", "t5x"), default="auto",
                        help="who trains; auto is t5x for TPU slices, engine otherwise")  # fmt: skip
    parser.add_argument("--utilisation", type=float, metavar="SHARE",
                        help="share of the peak, 0 to 1; published run 0.44, otherwise 0.35")  # fmt: skip
    parser.add_argument("--start_step", type=arguments.between(int, 0, 2**31 - 1), metavar="N",
                        help="steps already done; read off INITIAL_CHECKPOINT_PATH if set")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    args, macros = arguments.parse_with_gin(parser, argv, base=["configs/engine/engine.gin"])
    if args.utilisation is not None and not 0.0 < args.utilisation <= 1.0:
        raise UserError(f"--utilisation={args.utilisation}: a share is above 0 and at most 1")

    planner, partitions, steps = _planner(args, macros)
    estimate = planner.estimate(planner.asked(partitions))
    report = _report(planner, estimate, steps)
    fits = planner.fits(estimate)
    remedies = [] if fits == "yes" else planner.remedies(estimate.choice)
    if args.json:
        report["remedies"] = [dataclasses.asdict(other.choice) for other in remedies]
        print(json.dumps(report, indent=2))
    else:
        _print(planner, estimate, report)
        _print_verdict(planner, estimate, remedies, report)
    return 1 if fits == "no" else 0


def _planner(args: Any, macros: Macros) -> tuple[Planner, int, int]:
    """The planner, NUM_MODEL_PARTITIONS, and the number of steps to do."""
    from kcmoe.config.training import counted_from, counts_from_start
    from kcmoe.tools.plan import hardware as hardware_lib
    from kcmoe.tools.plan.estimate import Planner
    from kcmoe.training.settings import Settings

    hardware = hardware_lib.parse(args.hardware)
    is_tpu = hardware.platform == "tpu"
    stack: Stack = args.stack if args.stack != "auto" else "t5x" if is_tpu else "engine"
    if stack == "engine" and hardware.hosts > 1:
        raise UserError(
            f"the engine uses the devices of one host, and {hardware.name} has {hardware.hosts} "
            "hosts; train there with T5X (--stack=t5x, configs/t5x)"
        )
    partitions = macros.get("NUM_MODEL_PARTITIONS") or 1
    if not isinstance(partitions, int) or partitions < 1:
        raise UserError(f"NUM_MODEL_PARTITIONS = {partitions!r}, but it must be a whole number")
    if stack == "engine" and partitions > 1:
        raise UserError("NUM_MODEL_PARTITIONS is T5X's; the engine divides rows and experts only")
    missing = {name: "not needed" for name in _NOT_NEEDED if name in macros.required}
    start = args.start_step
    if start is None:
        start = _named_step(macros) or 0 if counts_from_start(macros) else _start_step(macros)
    settings = Settings.from_macros(counted_from(macros.replace(**missing), start))
    steps = settings.run.train_steps - start
    if steps < 1:
        raise UserError(
            f"TRAIN_STEPS = {settings.run.train_steps} is not beyond step {start} to start from"
        )
    default = _TPU_UTILISATION if is_tpu else _OTHER_UTILISATION
    utilisation = args.utilisation or default
    packed = bool(macros.get("PACK", False))
    return Planner(settings, hardware, stack, utilisation, packed), partitions, steps


def _named_step(macros: Macros) -> int | None:
    """N where INITIAL_CHECKPOINT_PATH is called checkpoint_N; the step of a model that ships."""
    from kcmoe.checkpoint import open_checkpoint, shipped
    from kcmoe.checkpoint.storage import step_of

    path = str(macros.get("INITIAL_CHECKPOINT_PATH"))
    return open_checkpoint(path).step if path in shipped.MODELS else step_of(path)


def _start_step(macros: Macros) -> int:
    """Steps already done when the run begins, which TRAIN_STEPS includes."""
    path = macros.get("INITIAL_CHECKPOINT_PATH")
    if not path and "INITIAL_CHECKPOINT_PATH" not in macros.required:
        return 0
    step = _named_step(macros)
    if step is None:
        asked = f"{path} does not say its step" if path else "INITIAL_CHECKPOINT_PATH is not set"
        raise UserError(
            f"{asked}, and TRAIN_STEPS includes the steps before the run; add --start_step=N or "
            "--gin.INITIAL_CHECKPOINT_PATH='\"dir/checkpoint_N\"'"
        )
    return step


def _report(planner: Planner, estimate: Forecast, steps: int) -> dict[str, Any]:
    """Everything there is to say, as plain numbers with units in their names."""
    from kcmoe.model import flops
    from kcmoe.training import state
    from kcmoe.tree import total_bytes

    run, hardware, choice = planner.settings.run, planner.hardware, estimate.choice
    shapes = state.state_shapes(planner.settings.model, planner.settings.optimizer)
    total, active = flops.parameter_counts(planner.settings.model, shapes.params)
    flat = state.to_flat(shapes).values()
    tokens = choice.batch_size * sum(run.lengths[name] for name in ("inputs", "targets"))
    return {
        "hardware": hardware.name,
        "devices": hardware.devices,
        "stack": planner.stack,
        "parameters": total,
        "active_parameters": active,
        "batch_size": choice.batch_size,
        "tokens_per_step": tokens,
        "start_step": run.train_steps - steps,
        "steps": steps,
        "tokens": tokens * steps,
        "flops_per_step": estimate.step_flops,
        "extra_flops_per_step": estimate.extra_flops,
        "utilisation": planner.utilisation,
        "peak_flops": hardware.peak_flops(planner.settings.model.activation_dtype),
        "mesh": dataclasses.asdict(estimate.mesh),
        "memory_bytes": {**dataclasses.asdict(estimate.memory), "total": estimate.memory.total},
        "usable_bytes": hardware.usable_bytes,
        "fits": planner.fits(estimate),
        "checkpoint_bytes": total_bytes(flat),
        "step_s": estimate.step_s,
        "days": estimate.step_s * steps / DAY_S,
        "device_hours": estimate.step_s * steps / 3600 * hardware.devices,
    }


def _print(planner: Planner, estimate: Forecast, report: dict[str, Any]) -> None:
    run, kind, dtype = planner.settings.run, planner.hardware.kind, planner.settings.model
    inputs, targets = run.lengths["inputs"], run.lengths["targets"]
    mesh, memory = estimate.mesh, estimate.memory
    # What the number in a name counts is not what JAX calls a device, so both are said.
    print(
        f"hardware     {report['hardware']}: {report['devices']} JAX devices of "
        f"{kind.peak_tflops:,.4g} TFLOP/s and {kind.memory_gib:,.4g} GiB; "
        f"data {mesh.data} x expert {mesh.expert} x model {mesh.model}; "
        f"{'T5X + Flaxformer' if planner.stack == 't5x' else 'the engine'}"
    )
    print(
        f"model        {report['parameters']:,} parameters, {report['active_parameters']:,} active "
        f"per token, {dtype.activation_dtype} activations"
    )
    print(
        f"step         {report['batch_size']} rows x ({inputs} inputs + {targets} targets) = "
        f"{report['tokens_per_step']:,} tokens, {report['flops_per_step']:.3g} FLOP"
    )
    if report["extra_flops_per_step"]:
        why = "one-hot dispatch masks" if planner.stack == "t5x" else "recomputation (REMAT)"
        share = report["extra_flops_per_step"] / report["flops_per_step"]
        print(f"             and {report['extra_flops_per_step']:.3g} FLOP ({share:.0%}) of {why}")
    after = f" after {report['start_step']:,} already done" if report["start_step"] else ""
    print(f"run          {report['steps']:,} steps{after}, {report['tokens']:.3g} tokens")
    print("memory of one device")
    for name, size in dataclasses.asdict(memory).items():
        if size:
            print(f"  {name:<12}{gibibytes(size):>10}")
    usable = f"{kind.usable:.0%} of {kind.memory_gib:,.4g} GiB"
    print(
        f"  {'in all':<12}{gibibytes(memory.total):>10}  of {gibibytes(report['usable_bytes'])} ({usable})"
    )
    print(f"checkpoint   {gibibytes(report['checkpoint_bytes'])} on disk")
    rate = 1 / estimate.step_s
    shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    print(
        f"time         {shown} steps/s, {_duration(estimate.step_s * report['steps'])}, "
        f"{report['device_hours']:,.1f} device-hours at {report['utilisation']:.0%} of the peak"
    )
    if estimate.step_s < _SHORT_STEP_S:
        print(
            "             arithmetic alone: a step as short as this takes longer to be started, and the "
            "run to compile"
        )


def _print_verdict(
    planner: Planner, estimate: Forecast, remedies: Sequence[Forecast], report: dict[str, Any]
) -> None:
    over = estimate.memory.total - report["usable_bytes"]
    if report["fits"] == "tight":
        share = over / estimate.memory.activations
        print(f"fits         tight: XLA for TPUs will compute {share:.0%} of the activations again")
    else:
        print(f"fits         {report['fits']}")
    if report["fits"] == "yes":
        return
    for other in remedies:
        time = _duration(other.step_s * report["steps"])
        share = other.choice.batch_size / estimate.choice.batch_size
        tokens = "" if share == 1 else f", {share:.0%} of the tokens"
        size = gibibytes(other.memory.total)
        print(f"  room with  {_changes(estimate, other)}: {size} per device, {time}{tokens}")
    if not remedies:
        print("             no setting makes it fit; use larger or more devices")
    if planner.hardware.kind.usable == 0.75:
        print(
            "             JAX takes 75 % of a GPU; XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 gives it more"
        )


def _changes(asked: Forecast, other: Forecast) -> str:
    names = {
        "batch_size": "BATCH_SIZE",
        "microbatches": "NUM_MICROBATCHES",
        "remat": "REMAT",
        "model_partitions": "NUM_MODEL_PARTITIONS",
    }
    before, after = dataclasses.asdict(asked.choice), dataclasses.asdict(other.choice)
    changed = [f"--gin.{names[k]}={after[k]}" for k in names if before[k] != after[k]]
    return " ".join(changed)


def _duration(seconds: float) -> str:
    if seconds >= 2 * DAY_S:
        return f"{seconds / DAY_S:,.1f} days"
    if seconds >= 7200:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 60:,.1f} minutes"
