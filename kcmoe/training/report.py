# SPDX-License-Identifier: Apache-2.0
"""What `kcmoe train` says before the first step: devices, sizes, the arithmetic of a step, the
plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from kcmoe.io.wording import human_bytes
from kcmoe.training.flops import parameter_counts, train_step_flops
from kcmoe.training.settings import Settings


def devices(mesh: Mesh) -> str:
    """E.g. "4 x cpu (data 1 x expert 4), JAX 0.10.2"."""
    first = mesh.devices.flat[0]
    split = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"devices     {mesh.size} x {first.device_kind} ({split}), JAX {jax.__version__}"


def sizes(settings: Settings, params: Mapping[str, Any], frozen: frozenset[str]) -> str:
    """Parameters in all, per token, and frozen ones."""
    total, active = parameter_counts(settings.model, params)
    dtype = settings.model.activation_dtype
    line = f"model       {total:,} parameters, {active:,} active per token, {dtype} activations"
    if frozen:
        still, _ = parameter_counts(settings.model, {path: params[path] for path in frozen})
        line += f"; {still:,} frozen by FREEZE in {len(frozen)} arrays"
    return line


def step_arithmetic(settings: Settings) -> str:
    """The tokens of a step, spelt out."""
    run = settings.run
    inputs, targets = run.lengths["inputs"], run.lengths["targets"]
    flops = train_step_flops(settings.model, run.batch_size, inputs, targets)
    parts = ""
    if run.microbatches > 1:
        rows = run.batch_size // run.microbatches
        parts = f" in {run.microbatches} microbatches of {rows} rows"
    return (
        f"step        {run.batch_size} rows x ({inputs} inputs + {targets} targets) = "
        f"{run.tokens_per_step:,} tokens{parts}, {flops / 1e9:,.1f} GFLOP"
    )


def plan(settings: Settings, start_step: int, checkpoint_bytes: int) -> str:
    """Which steps will be done, and what is left behind when."""
    run = settings.run
    todo = run.train_steps - start_step
    keep = (
        "all kept" if run.checkpoints_to_keep is None else f"newest {run.checkpoints_to_keep} kept"
    )
    evaluation = f"evaluation every {run.eval_period:,}" if run.eval_period else "no evaluation"
    tokens, size = todo * run.tokens_per_step, human_bytes(checkpoint_bytes)
    return (
        f"plan        steps {start_step:,} -> {run.train_steps:,} ({tokens:,} tokens); "
        f"checkpoint every {run.checkpoint_period:,} ({size}, {keep}); {evaluation}"
    )


def memory(compiled: Any) -> str:
    """What the compiled step needs on each device."""
    try:
        analysis = compiled.memory_analysis()
        held, scratch = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    except (AttributeError, NotImplementedError, RuntimeError):
        return "memory      not said by this backend"
    return (
        f"memory      {human_bytes(held)} of state and batch, {human_bytes(scratch)} of "
        "activations and gradients, per device"
    )


def start(step: int, origin: Path | str | None, seed: int, *, optimizer: bool) -> str:
    """Where the weights are from: a checkpoint of this run (Path), of another (str), or a seed;
    `optimizer` says whether the optimizer state is from there, too."""
    if origin is None:
        return f"start       step {step:,}, fresh weights from RANDOM_SEED {seed}"
    if not optimizer:
        return f"start       step {step:,}, weights of {origin}, fresh optimizer state"
    word = "continued from" if isinstance(origin, Path) else "weights and optimizer state of"
    return f"start       step {step:,}, {word} {origin}"


def validation(step: int, values: Mapping[str, Any], metric: str) -> str:
    """The metric that chooses the best checkpoint, then the ones everybody looks for."""
    shown = dict.fromkeys((metric, "cross_ent_loss", "token_accuracy"))
    listed = ", ".join(f"{name} {float(values[name]):.4f}" for name in shown if name in values)
    return f"validation  step {step:,}: {listed}"
