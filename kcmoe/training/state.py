# SPDX-License-Identifier: Apache-2.0
"""The training state, its flat form (the tree T5X writes to checkpoints, see `kcmoe.tree`), and which of it
stays frozen.

Patterns of FREEZE are regular expressions that match from the start of the path, as T5X's do (`encoder/.*`
freezes the encoder, `.*router.*` the routers).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kcmoe import tree
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError, near_misses
from kcmoe.model.interface import Flat, init_params
from kcmoe.training.optimizers.base import Optimizer


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "param_states"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything training changes.

    Attributes:
      step: int32 scalar, steps taken, pretraining included.
      params: path -> float32 array.
      param_states: path -> slot of the optimizer -> array.
    """

    step: Array
    params: Flat
    param_states: dict[str, Flat]


def start(params: Flat, optimizer: Optimizer, step: Array | int = 0) -> TrainState:
    """The state of `params` before their first update, with a fresh optimizer state."""
    return TrainState(jnp.asarray(step, jnp.int32), params, optimizer.init(params))


def init_state(config: ModelConfig, seed: int, optimizer: Optimizer) -> TrainState:
    """Fresh parameters from `seed` at step 0."""
    return start(init_params(config, seed), optimizer)


def state_shapes(config: ModelConfig, optimizer: Optimizer) -> TrainState:
    """Shapes and dtypes of `init_state`, without allocating anything."""
    return jax.eval_shape(lambda: init_state(config, 0, optimizer))


def for_use(state: TrainState) -> Flat:
    """The parameters to judge and use: the averages where the run keeps them, else the weights.

    A parameter that was never averaged (frozen, or before the first step) is itself.
    """

    def one(path: str, param: Array) -> Array:
        slots = state.param_states.get(path, {})
        if tree.AVERAGE not in slots:
            return param
        return jnp.where(slots[tree.AVERAGED] > 0, slots[tree.AVERAGE].astype(param.dtype), param)

    return {path: one(path, param) for path, param in state.params.items()}


def to_flat(state: TrainState) -> Flat:
    """The state as T5X's checkpoint tree, flat."""
    return tree.joined(state.step, state.params, state.param_states)


def from_flat(flat: Mapping[str, Any]) -> TrainState:
    """Inverse of `to_flat`. The caller has checked that every leaf is there."""
    return TrainState(*tree.split(flat))


# t5x@cc342d4:t5x/contrib/moe/trainer.py: the parameters whose gradients MoeTrainer scales.
EXPERT_PATTERN = re.compile(r".*expert.*")


def is_expert(path: str) -> bool:
    """Whether the parameter at `path` belongs to an expert."""
    return EXPERT_PATTERN.match(path) is not None


def frozen_paths(patterns: Sequence[str], paths: Iterable[str]) -> frozenset[str]:
    """The `paths` that some of `patterns` matches.

    Raises:
      UserError: for a pattern that is no regular expression or matches nothing, or if nothing is
        left to train.
    """
    paths = list(paths)
    frozen: set[str] = set()
    for pattern in patterns:
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise UserError(f"FREEZE: {pattern!r} is no regular expression ({error})") from None
        matched = {path for path in paths if regex.match(path)}
        if not matched:
            raise UserError(f"FREEZE: {pattern!r} matches no parameter.{_nearest(pattern, paths)}")
        frozen |= matched
    if len(frozen) == len(paths):
        raise UserError(f"FREEZE = {list(patterns)!r} freezes every parameter; nothing would train")
    return frozenset(frozen)


def _nearest(pattern: str, paths: Sequence[str]) -> str:
    """A hint from the paths, whole and cut at each slash, so that `enc/.*` finds `encoder/.*`."""
    candidates = set(paths)
    for path in paths:
        parts = path.split("/")
        candidates.update("/".join(parts[:n]) + "/.*" for n in range(1, len(parts)))
        candidates.update(f".*{part}.*" for part in parts)
    return near_misses(pattern, sorted(candidates))
