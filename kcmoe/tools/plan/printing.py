# SPDX-License-Identifier: Apache-2.0
"""What `kcmoe plan` prints: a line for each fact, the verdict, and what the compiler said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kcmoe.io.wording import gibibytes, human_bytes
from kcmoe.tools.plan import pace as pace_lib

if TYPE_CHECKING:
    from kcmoe.tools.plan.compiled import Compiled
    from kcmoe.tools.plan.estimate import Forecast, Planner, Tradeoff
    from kcmoe.tools.plan.hardware import Hardware
    from kcmoe.tools.plan.pace import Pace

DAY_S = 86400
MACROS = {
    "batch_size": "BATCH_SIZE",
    "microbatches": "NUM_MICROBATCHES",
    "remat": "REMAT",
    "model_partitions": "NUM_MODEL_PARTITIONS",
}
_EXCHANGES = 6  # kinds and sizes of exchanges that have a line of their own
_SHORT_STEP_S = 1e-3  # about what it takes to start a step on an accelerator


def print_plan(planner: Planner, estimate: Forecast, pace: Pace, report: Mapping[str, Any]) -> None:
    """Sizes, arithmetic, memory by arithmetic, time and input."""
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
        why = "one-hot masks and embedding" if planner.stack == "t5x" else "recomputation (REMAT)"
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
    rate = 1 / report["step_s"]
    shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    print(
        f"time         {shown} steps/s, {duration(report['step_s'] * report['steps'])}, "
        f"{report['device_hours']:,.1f} device-hours at {report['utilisation']:.0%} of the peak"
    )
    if estimate.step_s < _SHORT_STEP_S:
        print(
            "             arithmetic alone: a step as short as this takes longer to be started, and the "
            "run to compile"
        )
    for label, line in zip(("input", "", ""), pace_lib.lines(pace, planner.stack), strict=False):
        print(f"{label:<13}{line}")


def compiled_lines(compiled: Compiled, estimate: Forecast, hardware: Hardware) -> list[str]:
    """What the compiler said, beside what arithmetic says."""
    versions = compiled.versions
    took = "kept from before" if compiled.cached else "now"
    mesh = " x ".join(f"{axis} {size}" for axis, size in compiled.mesh.items())
    said = [
        f"compiled     by libtpu {versions['libtpu']} with jax {versions['jax']} for "
        f"{hardware.topology}, {mesh}; {compiled.compile_s:,.0f} s, {took}"
    ]
    if compiled.error:
        said += [f"  no program {compiled.error}"]
        return said + [f"  largest    {one}" for one in compiled.largest]
    planned = estimate.memory.total
    said += [
        f"  {'arguments':<12}{gibibytes(compiled.arguments_bytes):>10}",
        f"  {'temporaries':<12}{gibibytes(compiled.temporaries_bytes):>10}",
        f"  {'code':<12}{gibibytes(compiled.code_bytes + compiled.new_outputs_bytes):>10}",
        f"  {'in all':<12}{gibibytes(compiled.total_bytes):>10}  of {hardware.kind.memory_gib:,.4g} GiB",
        f"  {'peak':<12}{gibibytes(compiled.peak_bytes):>10}  by arithmetic {gibibytes(planned)} "
        f"({planned / max(compiled.peak_bytes, 1) - 1:+.0%})",
        f"  time        {_estimate(compiled)}; by arithmetic {estimate.step_s:.3g} s",
        f"  one device  {compiled.flops:.3g} FLOP and {human_bytes(compiled.accessed_bytes)} read and "
        "written, loops counted once",
        f"  exchanges   {human_bytes(compiled.exchanged_bytes)} a step and device",
    ]
    for one in compiled.exchanges[:_EXCHANGES]:
        said.append(f"    {one.times:>4} {one.kind} of {human_bytes(one.bytes_each)}")
    others = compiled.exchanges[_EXCHANGES:]
    if others:
        rest = sum(one.times * one.bytes_each for one in others)
        said.append(f"    {sum(one.times for one in others):>4} others, {human_bytes(rest)}")
    return said


def _estimate(compiled: Compiled) -> str:
    if not compiled.estimate_s:
        return "the compiler gives no estimate for this slice"
    return f"{compiled.estimate_s:.3g} s a step, the compiler's estimate"


def print_verdict(
    planner: Planner,
    estimate: Forecast,
    remedies: Sequence[tuple[Forecast, Compiled | None]],
    report: Mapping[str, Any],
) -> None:
    """Whether it fits; if not, what makes it fit."""
    over = estimate.memory.total - report["usable_bytes"]
    if report["compiled"]:
        print(f"fits         {report['fits']}, says the compiler")
    elif report["fits"] == "tight":
        share = over / estimate.memory.activations
        print(f"fits         tight: XLA for TPUs will compute {share:.0%} of the activations again")
    else:
        print(f"fits         {report['fits']}")
    if report["fits"] == "yes":
        return
    for other, compiled in remedies:
        time = duration(other.step_s * report["steps"])
        share = other.choice.batch_size / estimate.choice.batch_size
        tokens = "" if share == 1 else f", {share:.0%} of the tokens"
        size = gibibytes(compiled.total_bytes if compiled else other.memory.total)
        size += ", compiled," if compiled else ""
        print(f"  room with  {_changes(estimate, other)}: {size} per device, {time}{tokens}")
    if not remedies:
        print("             no setting makes it fit; use larger or more devices")
    if planner.hardware.kind.usable == 0.75:
        print(
            "             JAX takes 75 % of a GPU; XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 gives it more"
        )


def changed_macros(asked: Tradeoff, other: Tradeoff) -> dict[str, Any]:
    """The settings in which two choices differ: macro -> value of the other."""
    before, after = dataclasses.asdict(asked), dataclasses.asdict(other)
    return {MACROS[k]: after[k] for k in MACROS if before[k] != after[k]}


def _changes(asked: Forecast, other: Forecast) -> str:
    changed = changed_macros(asked.choice, other.choice)
    return " ".join(f"--gin.{name}={value}" for name, value in changed.items())


def duration(seconds: float) -> str:
    """E.g. 8.1 days, 3.0 hours, 12.0 minutes."""
    if seconds >= 2 * DAY_S:
        return f"{seconds / DAY_S:,.1f} days"
    if seconds >= 7200:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 60:,.1f} minutes"
