# SPDX-License-Identifier: Apache-2.0
"""Sums that no number of rows changes.

XLA for CPUs adds up in one order if there are few rows, and in another if there are many (from 4,096 values
on, where even its exponentials are others). A step of decoding has few or many, by how many lines are
answered together, and an answer must not depend on them. So where it matters values are combined half with
half, without a reduction. Other devices reduce.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def mean(values: Array) -> Array:
    """The mean over the last axis: float32[..., N] -> float32[..., 1]."""
    return jax.lax.platform_dependent(
        values,
        cpu=lambda values: _combined(jnp.add, values) / values.shape[-1],
        default=lambda values: jnp.mean(values, axis=-1, keepdims=True),
    )


def softmax(logits: Array) -> Array:
    """softmax over the last axis: float32[..., N] -> float32[..., N]."""
    return jax.lax.platform_dependent(logits, cpu=_softmax, default=jax.nn.softmax)


def _softmax(logits: Array) -> Array:
    exponentials = jnp.exp(logits - _combined(jnp.maximum, logits))
    return exponentials / _combined(jnp.add, exponentials)


def _combined(combine: Callable[[Array, Array], Array], values: Array) -> Array:
    """float[..., N] -> float[..., 1]: the first half combined with the second, until one value is left."""
    while (size := values.shape[-1]) > 1:
        half = size // 2
        combined = combine(values[..., :half], values[..., half : 2 * half])
        values = jnp.concatenate([combined, values[..., 2 * half :]], axis=-1)
    return values
