# SPDX-License-Identifier: Apache-2.0
"""What `kcmoe train` says: devices, sizes, the arithmetic of a step and the plan before the first step; then
a bar on a terminal, or a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from kcmoe.io.wording import human_bytes
from kcmoe.model.flops import parameter_counts, train_step_flops
from kcmoe.training.settings import Settings
from kcmoe.training.start import Start

LINE_PERIOD_S = 10.0  # between lines in a log file


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


def teacher(checkpoint: str, params: Mapping[str, Any], settings: Settings) -> str:
    """Whose probabilities are learnt, and how much they count."""
    total = sum(leaf.size for leaf in params.values())
    weight = settings.teacher.weight
    return (
        f"teacher     {checkpoint}, {total:,} parameters: its {settings.teacher.top} likeliest pieces of "
        f"each position count {weight:.0%} of the loss, the targets {1 - weight:.0%}"
    )


def start(where: Start, seed: int) -> str:
    """Where the weights are from: a checkpoint of this run, one of another, or a seed."""
    begins = f"start       step {where.step:,}"
    if not where.checkpoint:
        return f"{begins}, fresh weights from RANDOM_SEED {seed}"
    if not where.optimizer_kept:
        return f"{begins}, weights of {where.checkpoint}, fresh optimizer state"
    word = "continued from" if where.resumed else "weights and optimizer state of"
    return f"{begins}, {word} {where.checkpoint}"


def validation(step: int, values: Mapping[str, Any], metric: str) -> str:
    """The metric that chooses the best checkpoint, then the loss and the accuracy."""
    shown = dict.fromkeys((metric, "cross_ent_loss", "token_accuracy"))
    listed = ", ".join(f"{name} {float(values[name]):.4f}" for name in shown if name in values)
    return f"validation  step {step:,}: {listed}"


class Progress:
    """Steps done of all, with loss, speed and time left."""

    def __init__(self, start_step: int, total_steps: int, quiet: bool = False):
        from tqdm import tqdm

        self._total = total_steps
        self._bar = tqdm(
            initial=start_step,
            total=total_steps,
            disable=quiet or None,
            unit="step",
            dynamic_ncols=True,
        )
        self._last_line_s = float("-inf")

    def update(
        self, step: int, loss: float, tokens_per_s: float, flops_per_s: float, step_s: float
    ) -> None:
        """Shows step `step`; `step_s` seconds per step give the time left."""
        speed = f"{tokens_per_s:,.0f} tokens/s, {_flops(flops_per_s)}"
        if not self._bar.disable:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {speed}", refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now_s = time.monotonic()
        if now_s - self._last_line_s >= LINE_PERIOD_S or step == self._total:
            self._last_line_s = now_s
            left = _duration((self._total - step) * step_s)
            self.say(f"step {step:,}/{self._total:,}  loss {loss:.4f}  {speed}  {left} left")

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


def _flops(per_second: float) -> str:
    """1.2e12 -> "1.20 TFLOP/s"."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if per_second >= factor:
            return f"{per_second / factor:.2f} {prefix}FLOP/s"
    return f"{per_second / 1e6:.2f} MFLOP/s"


def _duration(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
