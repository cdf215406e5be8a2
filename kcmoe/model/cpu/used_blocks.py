# SPDX-License-Identifier: Apache-2.0
"""Rows of experts in blocks, of which only those in use are computed: how answers are computed on CPUs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

_MANY_BLOCKS = (
    3  # per expert, from which on matrices are taken out once for all blocks of their expert
)


@dataclasses.dataclass(frozen=True)
class UsedBlocks:
    """Rows in blocks of one expert each, of which only the first `used` hold any: x is [M, D]."""

    expert_of_block: Array  # int32[M / block], ascending
    used: Array  # int32 scalar
    block: int  # rows per block

    def through(self, mlp: Callable[..., Array], x_MxD: Array, *weights_ExDxF: Array) -> Array:
        """mlp(rows, *matrices of their expert) for the blocks in use: float[M, D] -> float[M, D]."""

        def compute(number: Array, y_MxD: Array, weights: Sequence[Array] = ()) -> Array:
            start, expert = number * self.block, self.expert_of_block[number]
            rows = jax.lax.dynamic_slice_in_dim(x_MxD, start, self.block)
            y = mlp(rows, *(weights or (w[expert] for w in weights_ExDxF)))
            return jax.lax.dynamic_update_slice_in_dim(y_MxD, y, start, axis=0)

        experts, y_MxD = weights_ExDxF[0].shape[0], jnp.zeros_like(x_MxD)
        if self.expert_of_block.shape[0] < _MANY_BLOCKS * experts:
            return jax.lax.fori_loop(0, self.used, compute, y_MxD)
        # XLA copies a matrix out of its stack before it multiplies by it.
        ends_E = jnp.sum(self.expert_of_block <= jnp.arange(experts)[:, None], axis=1)
        ends_E = jnp.minimum(ends_E.astype(jnp.int32), self.used)

        def compute_expert(expert: Array, y_MxD: Array) -> Array:
            weights = [w[expert] for w in weights_ExDxF]
            start = jnp.where(expert > 0, ends_E[expert - 1], 0)
            step = functools.partial(compute, weights=weights)
            return jax.lax.fori_loop(start, ends_E[expert], step, y_MxD)

        return jax.lax.fori_loop(0, experts, compute_expert, y_MxD)


def unpacked(matrix: Array) -> Array:
    """A matrix of bfloat16 that is held as uint16; anything else as it is.

    Out of a stack of bfloat16 matrices XLA for CPUs takes one by making float32 of all.
    """
    if matrix.dtype != jnp.uint16:
        return matrix
    return jax.lax.bitcast_convert_type(matrix, jnp.bfloat16)
