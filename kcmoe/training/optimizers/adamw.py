# SPDX-License-Identifier: Apache-2.0
"""AdamW whose step is a share of each parameter's own size (arXiv:1711.05101; the scaling is that of nanoT5,
PiotrNawrot/nanoT5, and of Adafactor, arXiv:1804.04235, section 8).

One learning rate then suits an embedding of unit variance and a kernel of a few hundredths, as T5 begins
them. T5X has no such optimizer: a run of it goes on there with fresh Adafactor state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from kcmoe.config.training import AdamWConfig
from kcmoe.training.optimizers.base import Optimizer, Params, Slot, States
from kcmoe.tree import logical_axes

EPSILON = 1e-12  # added to the root of the second moment
SMALLEST = 1e-3  # smallest size of a parameter that a step is a share of, as Adafactor's


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(AdamWConfig, Optimizer):
    """First and second moments of every parameter, float32."""

    def slots(self, path: str, shape: tuple[int, ...]) -> dict[str, Slot]:
        """See `Optimizer.slots`. `taken` counts steps, as a run may begin with another's weights and step."""
        moments = dict.fromkeys(("m", "v"), Slot(shape, logical_axes(path)))
        return {**moments, "taken": Slot((1,), (None,))}

    def update(
        self,
        params: Mapping[str, Array],
        states: Mapping[str, Mapping[str, Array]],
        grads: Mapping[str, Array],
        step: Array,
        learning_rate: Array,
    ) -> tuple[Params, States]:
        """See `Optimizer.update`."""
        squares = [jnp.sum(jnp.square(grads[path])) for path in params]
        clip = jnp.minimum(1.0, self.clip_norm / (jnp.sqrt(jnp.sum(jnp.stack(squares))) + EPSILON))
        new_params, new_states = {}, {}
        for path, param in params.items():
            state = {"taken": states[path]["taken"] + 1.0}
            grad = grads[path] * clip
            state["m"] = self.beta1 * states[path]["m"] + (1.0 - self.beta1) * grad
            state["v"] = self.beta2 * states[path]["v"] + (1.0 - self.beta2) * jnp.square(grad)
            # The averages begin at zero; divided by the weight they hold so far (equations of section 3).
            mean = state["m"] / (1.0 - self.beta1 ** state["taken"])
            mean_square = state["v"] / (1.0 - self.beta2 ** state["taken"])
            size = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(param))), SMALLEST)
            step_size = size * mean / (jnp.sqrt(mean_square) + EPSILON)
            if is_kernel(path):
                step_size += self.weight_decay * param
            new_params[path] = (param - learning_rate * step_size).astype(param.dtype)
            new_states[path] = state
        return new_params, new_states


def is_kernel(path: str) -> bool:
    """Whether the parameter is multiplied with hidden states inside a layer: attention, MLPs, experts."""
    return path.endswith("/kernel") and "logits_dense" not in path and "router" not in path
