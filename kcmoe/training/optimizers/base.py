# SPDX-License-Identifier: Apache-2.0
"""What training asks of an optimizer. A new one is one file beside this and one line in `registry.py`.

State, sharding, checkpoints and `kcmoe plan` know an optimizer by its slots alone: the arrays that it keeps
for each parameter, with their shapes and with the axes along which they are divided over devices. A slot
`m` of parameter `a/b` is `state/param_states/a/b/m` in a checkpoint, as in T5X, and begins at zero.

An optimizer is a dataclass of its own gin macros, so it is made by `from_macros`. Macros that belong in the
files of `configs/` are declared in `kcmoe/config/training.py`, where verbs that never train find their names
(`Adafactor` derives from `AdafactorConfig`); others may be declared in the optimizer's own file.

The learning rate comes from the schedule, and gradients arrive as the update has them: summed over
microbatches, those of experts multiplied by NUM_EXPERT_PARTITIONS, and none of frozen parameters. Which rule
a parameter follows (weight decay, factoring, orthogonalization, …) is decided by its path, whose logical
axes `kcmoe.tree.logical_axes` tells. Parameters are flat: path -> array.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from kcmoe.config.fields import GinConfig

Params = dict[str, Array]  # path -> array
States = dict[str, dict[str, Array]]  # path -> name of the slot -> array


@dataclasses.dataclass(frozen=True)
class Slot:
    """One float32 array that an optimizer keeps for a parameter.

    Attributes:
      shape: its shape; (1,) for a member of T5X's layout that this parameter does not use.
      axes: for each dimension the logical axis by which it is divided over devices, as `kcmoe.tree`
        names them, or None where it is copied. A slot of the
        shape of its parameter has the axes of the parameter.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


class Optimizer(GinConfig, abc.ABC):
    """Turns gradients into new parameters; frozen, without arrays of its own."""

    @abc.abstractmethod
    def slots(self, path: str, shape: tuple[int, ...]) -> dict[str, Slot]:
        """What is kept for the parameter at `path`, by name; {} for nothing."""

    @abc.abstractmethod
    def update(
        self,
        params: Mapping[str, Array],
        states: Mapping[str, Mapping[str, Array]],
        grads: Mapping[str, Array],
        step: Array,
        learning_rate: Array,
    ) -> tuple[Params, States]:
        """Takes one step, inside `jax.jit`.

        Args:
          params: the parameters to change, float32.
          states: the slots of these parameters, perhaps of more.
          grads: the gradients of these parameters, float32.
          step: int32 scalar, steps taken before this one, pretraining included.
          learning_rate: float32 scalar.

        Returns:
          New parameters and new states, for the paths of `params`.
        """

    def check_start(self, step: int) -> None:
        """Raises `UserError` where the settings do not allow to start at `step`."""

    def remembered_steps(self, step: int) -> float:
        """For how many steps the state remembers the scale of gradients, after `step` steps.

        0 for an optimizer whose steps are proportional to the gradients, or that keeps nothing.
        """
        del step
        return 0.0

    def init(self, params: Mapping[str, Array | jax.ShapeDtypeStruct]) -> States:
        """The state before the first step: zeros. Under `jax.eval_shape` nothing is allocated."""
        return {
            path: {
                name: jnp.zeros(slot.shape, jnp.float32)
                for name, slot in self.slots(path, param.shape).items()
            }
            for path, param in params.items()
        }
