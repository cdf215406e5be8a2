# SPDX-License-Identifier: Apache-2.0
"""Adafactor as T5X computes it, with its MoE factor rules (arXiv:1804.04235; t5x@cc342d4:t5x/adafactor.py
and t5x/contrib/moe/adafactor_utils.py).

Parameters of rank 2 are factored over their two axes when both are at least 128 long; experts are factored
one by one, whatever their size; everything else keeps a full second moment. Update clipping and the
parameter scale are per parameter, and per expert in an expert kernel. No momentum, no weight decay.
State is kept in T5X's form {m, v, v_col, v_row}, unused members being zeros of shape [1], so that
checkpoints interchange. Trees are flat: path -> array.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kcmoe.config.training import AdafactorConfig
from kcmoe.model.layers import column_sums
from kcmoe.tree import logical_axes

MIN_DIM_SIZE_TO_FACTOR = 128
EPSILON1 = 1e-30  # added to squared gradients
EPSILON2 = 1e-3  # smallest parameter scale
CLIPPING_THRESHOLD = 1.0

# Roles of axes in an expert kernel; T5X falls back to the size rule for every rank below 3.
_ROW, _COLUMN = ("embed", "mlp_embed"), ("mlp", "expert_mlp", "joined_kv", "vocab", "heads")

ParamState = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Factoring:
    """How the second moment of one parameter is kept.

    Attributes:
      row: axis that stays in `v_row`, or None where the second moment is not factored.
      column: axis that stays in `v_col`.
      mean_axes: axes over which the update's and the parameter's root mean square are taken.
    """

    row: int | None
    column: int | None
    mean_axes: tuple[int, ...]


def factoring(path: str, shape: tuple[int, ...]) -> Factoring:
    """The factoring T5X would choose for this parameter."""
    axes = logical_axes(path)
    if "expert" in axes:
        row = next(i for i, axis in enumerate(axes) if axis in _ROW)
        column = next(i for i, axis in enumerate(axes) if axis in _COLUMN)
        return Factoring(row, column, tuple(i for i, axis in enumerate(axes) if axis != "expert"))
    everything = tuple(range(len(shape)))
    by_size = np.argsort(shape, kind="stable")
    if len(shape) < 2 or shape[by_size[-2]] < MIN_DIM_SIZE_TO_FACTOR:
        return Factoring(None, None, everything)
    return Factoring(int(by_size[-2]), int(by_size[-1]), everything)


def init(params: Mapping[str, Array]) -> dict[str, ParamState]:
    """Zero state for flat parameters. Works on shapes alone under `jax.eval_shape`."""
    return {path: _init_one(path, param.shape) for path, param in params.items()}


def _init_one(path: str, shape: tuple[int, ...]) -> ParamState:
    state = {name: jnp.zeros((1,), jnp.float32) for name in ("m", "v", "v_col", "v_row")}
    how = factoring(path, shape)
    if how.row is None or how.column is None:
        state["v"] = jnp.zeros(shape, jnp.float32)
    else:
        state["v_row"] = jnp.zeros(tuple(np.delete(shape, how.column)), jnp.float32)
        state["v_col"] = jnp.zeros(tuple(np.delete(shape, how.row)), jnp.float32)
    return state


def update(
    params: Mapping[str, Array],
    states: Mapping[str, ParamState],
    grads: Mapping[str, Array],
    step: Array,
    learning_rate: Array,
    config: AdafactorConfig,
) -> tuple[dict[str, Array], dict[str, ParamState]]:
    """One step.

    Args:
      params: flat parameters, float32.
      states: their state.
      grads: their gradients, any float dtype.
      step: int32 scalar, steps taken before this one.
      learning_rate: float32 scalar.
      config: see `AdafactorConfig`.

    Returns:
      New parameters and states.
    """
    t = (step - config.step_offset).astype(jnp.float32) + 1.0
    decay = 1.0 - t ** (-config.decay_rate)
    updated = {
        path: _update_one(path, param, states[path], grads[path], decay, learning_rate)
        for path, param in params.items()
    }
    return {p: new for p, (new, _) in updated.items()}, {p: s for p, (_, s) in updated.items()}


def _update_one(
    path: str, param: Array, state: ParamState, grad: Array, decay: Array, learning_rate: Array
) -> tuple[Array, ParamState]:
    how = factoring(path, param.shape)
    grad = grad.astype(jnp.float32)
    squared = grad * grad
    new_state = dict(state)
    if how.row is None or how.column is None:
        new_state["v"] = decay * state["v"] + (1.0 - decay) * (squared + EPSILON1)
        direction = grad * new_state["v"] ** -0.5
        mean_square = _mean_square(direction, how)
    else:
        v_row = decay * state["v_row"] + (1.0 - decay) * (_mean(squared, how.column) + EPSILON1)
        v_col = decay * state["v_col"] + (1.0 - decay) * (_mean(squared, how.row) + EPSILON1)
        new_state["v_row"], new_state["v_col"] = v_row, v_col
        row_axis = how.row - (how.column < how.row)  # where the row axis stands in v_row
        row_factor = v_row / jnp.mean(v_row, axis=row_axis, keepdims=True)
        direction = (
            grad
            * jnp.expand_dims(row_factor**-0.5, how.column)
            * jnp.expand_dims(v_col**-0.5, how.row)
        )
        # The mean of direction^2 without the direction: memory, not arithmetic, is what a step waits for.
        rows = _weighted_sum(squared, 1.0 / v_col, how.row, how.column) / row_factor
        total = jnp.expand_dims(jnp.sum(rows, axis=row_axis, keepdims=True), how.column)
        mean_square = total / math.prod(param.shape[axis] for axis in how.mean_axes)

    clip = jnp.maximum(1.0, jnp.sqrt(mean_square) / CLIPPING_THRESHOLD)
    scale = learning_rate * jnp.maximum(jnp.sqrt(_mean_square(param, how)), EPSILON2) / clip
    return (param - scale * direction).astype(param.dtype), new_state


def _mean_square(x: Array, how: Factoring) -> Array:
    return jnp.mean(x * x, axis=how.mean_axes, keepdims=True)


def _weighted_sum(x: Array, weights: Array, row: int, column: int) -> Array:
    """Sum over axis `column` of x * weights, where `weights` lacks axis `row`: a product."""
    axes = "abc"[: x.ndim]
    terms = f"{axes},{axes.replace(axes[row], '')}->{axes.replace(axes[column], '')}"
    return jnp.einsum(terms, x, weights, precision=jax.lax.Precision.HIGHEST)


def _mean(x: Array, axis: int) -> Array:
    """jnp.mean over one axis."""
    if x.ndim == 2 and axis == 0:
        return column_sums(x) / x.shape[0]
    return jnp.mean(x, axis=axis)


def state_shapes(params: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, ParamState]:
    """Shapes and dtypes of `init(params)`, without allocating anything."""
    return jax.eval_shape(init, dict(params))
