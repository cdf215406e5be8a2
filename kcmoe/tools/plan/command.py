# SPDX-License-Identifier: Apache-2.0
"""`kcmoe plan`: what a run needs on some hardware, before any of it is rented."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kcmoe.config import arguments
from kcmoe.errors import UserError
from kcmoe.tools.plan import compiled as compiled_lib
from kcmoe.tools.plan import pace as pace_lib
from kcmoe.tools.plan import printing

if TYPE_CHECKING:
    from kcmoe.config.gin_files import Macros
    from kcmoe.tools.plan.compiled import Compiled
    from kcmoe.tools.plan.estimate import Forecast, Planner, Stack, Tradeoff
    from kcmoe.tools.plan.pace import Pace

_EPILOG = """\
examples:
  kcmoe plan --size=base --task=pretrain --gin_file=configs/runs/pretrain.gin --hardware=v3-8
  kcmoe plan --gin_file=configs/runs/pretrain_mini.gin --hardware=h100x1 --gin.NUM_MICROBATCHES=8
  kcmoe plan --size=base --task=nsmc --gin_file=configs/runs/finetune.gin --hardware=v5e-8 --compile

Prints parameters, arithmetic, memory per device, time and device-hours. Exit status 0 if the run fits,
1 if it does not; then the settings that make it fit follow. TPUs and GPUs are counted as XLA fuses there.
--compile asks the TPU's own compiler, which needs no TPU: base takes it some minutes, and its answer is kept
under ~/.cache/kcmoe (KCMOE_CACHE_DIR). It needs pip install 'kcmoe[tpu]', and T5X for what T5X trains.
"""

# Share of the peak that useful arithmetic gets, where nobody says better.
_TPU_UTILISATION = 0.44  # the published run: 1.45 steps/s on a v3-8
_OTHER_UTILISATION = 0.35  # assumed
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
    parser.add_argument("--compile", action="store_true",
                        help="compile the step for that TPU slice and say how it went")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    args, macros = arguments.parse_with_gin(parser, argv, base=["configs/engine/engine.gin"])
    if args.utilisation is not None and not 0.0 < args.utilisation <= 1.0:
        raise UserError(f"--utilisation={args.utilisation}: a share is above 0 and at most 1")

    planner, partitions, steps = _planner(args, macros)
    if args.compile:
        compiled_lib.check(planner.hardware, planner.stack)
    estimate = planner.estimate(planner.asked(partitions))
    pace = _pace(planner, estimate)
    report = _report(planner, estimate, pace, steps)
    if not args.json:
        printing.print_plan(planner, estimate, pace, report)
    answers: dict[Tradeoff, Compiled] = {}

    def fits(other: Forecast) -> bool:
        """Whether what fits by arithmetic fits; without --compile that is all there is to know."""
        if args.compile:
            answers[other.choice] = _compile(planner, estimate, other, quiet=args.json)
        return not args.compile or not answers[other.choice].error

    if args.compile:
        report["fits"] = "yes" if fits(estimate) else "no"
        report["compiled"] = dataclasses.asdict(answers[estimate.choice])
    asked = answers.get(estimate.choice)
    if asked and not args.json:
        print("\n".join(printing.compiled_lines(asked, estimate, planner.hardware)))
    remedies = [] if report["fits"] == "yes" else planner.remedies(estimate.choice, fits)
    if args.json:
        report["remedies"] = [dataclasses.asdict(other.choice) for other in remedies]
        print(json.dumps(report, indent=2))
    else:
        found = [(other, answers.get(other.choice)) for other in remedies]
        printing.print_verdict(planner, estimate, found, report)
    return 1 if report["fits"] == "no" else 0


def _compile(planner: Planner, asked: Forecast, other: Forecast, *, quiet: bool) -> Compiled:
    """The compiler's answer about `other`, a run that differs from the one asked about in some settings."""
    changed = printing.changed_macros(asked.choice, other.choice)
    macros = planner.settings.macros.replace(**changed)
    if not quiet:
        wanted = " ".join(f"{name}={value}" for name, value in changed.items())
        print(
            f"compiling    {wanted or 'the step'}; base takes minutes …",
            file=sys.stderr,
            flush=True,
        )
        if note := compiled_lib.other_version():
            print(f"             {note}", file=sys.stderr)
    answer = compiled_lib.compile_step(
        macros, planner.hardware, planner.stack, packed=planner.packed
    )
    if answer.fault:
        print(f"             not kept for the next time: {answer.fault}", file=sys.stderr)
    return answer


def _planner(args: Any, macros: Macros) -> tuple[Planner, int, int]:
    """The planner, NUM_MODEL_PARTITIONS, and the number of steps to do."""
    import jax

    from kcmoe.config.training import counted_from, counts_from_start
    from kcmoe.tools.plan import hardware as hardware_lib
    from kcmoe.tools.plan.estimate import Planner
    from kcmoe.training.settings import Settings

    # Only shapes are traced here: no GPU is taken, and no TPU looked for.
    jax.config.update("jax_platforms", "cpu")
    hardware = hardware_lib.parse(args.hardware)
    is_tpu = hardware.platform == "tpu"
    stack: Stack = args.stack if args.stack != "auto" else "t5x" if is_tpu else "engine"
    partitions = macros.get("NUM_MODEL_PARTITIONS") or 1
    if not isinstance(partitions, int) or partitions < 1:
        raise UserError(f"NUM_MODEL_PARTITIONS = {partitions!r}, but it must be a whole number")
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


def _pace(planner: Planner, estimate: Forecast) -> Pace:
    """What the run asks of the hosts."""
    row_tokens = sum(planner.settings.run.lengths[name] for name in ("inputs", "targets"))
    rows = estimate.choice.batch_size
    return pace_lib.of(planner.hardware, planner.stack, rows, row_tokens, estimate.step_s)


def _report(planner: Planner, estimate: Forecast, pace: Pace, steps: int) -> dict[str, Any]:
    """Everything there is to say, as plain numbers with units in their names."""
    from kcmoe.model import flops
    from kcmoe.training import state
    from kcmoe.tree import total_bytes

    run, hardware, choice = planner.settings.run, planner.hardware, estimate.choice
    shapes = state.state_shapes(planner.settings.model, planner.settings.optimizer)
    total, active = flops.parameter_counts(planner.settings.model, shapes.params)
    flat = state.to_flat(shapes).values()
    tokens = choice.batch_size * sum(run.lengths[name] for name in ("inputs", "targets"))
    step_s = estimate.step_s * pace.slowdown
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
        "pace": dataclasses.asdict(pace) | {"slowdown": pace.slowdown},
        "step_s": step_s,
        "days": step_s * steps / printing.DAY_S,
        "device_hours": step_s * steps / 3600 * hardware.devices,
        "compiled": None,
    }
