# SPDX-License-Identifier: Apache-2.0
"""A moving average of the weights, kept beside any optimizer (EMA_DECAY).

It changes nothing about training. Validation during the run, `kcmoe evaluate`, `predict` and `serve`, and
conversions that leave the optimizer behind take the average; a run that goes on takes the weights themselves.

After the n-th step a = d a + (1 - d) p with d = min(EMA_DECAY, (n - 1) / n): the plain mean of all steps so
far until that reaches back 1 / (1 - EMA_DECAY) steps. So the average never holds anything of the weights
before the first step, which an average of constant decay forgets only slowly (for the mean Polyak and
Juditsky 1992; arXiv:1706.03762, section 6.1, averages checkpoints).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from kcmoe.training.optimizers.base import Optimizer, Params, Slot, States
from kcmoe.tree import AVERAGE, AVERAGED, logical_axes


@dataclasses.dataclass(frozen=True)
class Averaged(Optimizer):
    """`inner`, with the average of the parameters it makes.

    Attributes:
      inner: the optimizer that takes the steps.
      decay: EMA_DECAY, share of the old average in a step.
    """

    inner: Optimizer
    decay: float

    def slots(self, path: str, shape: tuple[int, ...]) -> dict[str, Slot]:
        """See `Optimizer.slots`: those of `inner`, the average, and the steps that it holds."""
        average = {AVERAGE: Slot(shape, logical_axes(path)), AVERAGED: Slot((1,), (None,))}
        return {**self.inner.slots(path, shape), **average}

    def update(
        self,
        params: Mapping[str, Array],
        states: Mapping[str, Mapping[str, Array]],
        grads: Mapping[str, Array],
        step: Array,
        learning_rate: Array,
    ) -> tuple[Params, States]:
        """See `Optimizer.update`."""
        inner = {
            path: {name: x for name, x in states[path].items() if name not in (AVERAGE, AVERAGED)}
            for path in params
        }
        new_params, kept = self.inner.update(params, inner, grads, step, learning_rate)
        new_states = {path: dict(slots) for path, slots in kept.items()}
        for path, param in new_params.items():
            taken = states[path][AVERAGED]
            decay = jnp.minimum(self.decay, taken / (taken + 1.0))
            old = states[path][AVERAGE]
            new = old + (1.0 - decay) * (param.astype(jnp.float32) - old)
            new_states[path] |= {AVERAGE: new, AVERAGED: taken + 1.0}
        return new_params, new_states

    def check_start(self, step: int) -> None:
        """See `Optimizer.check_start`."""
        self.inner.check_start(step)

    def remembered_steps(self, step: int) -> float:
        """See `Optimizer.remembered_steps`."""
        return self.inner.remembered_steps(step)
