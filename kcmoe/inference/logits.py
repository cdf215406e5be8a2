# SPDX-License-Identifier: Apache-2.0
"""What is asked of the logits of a whole vocabulary: their normaliser, and the best of them.

Maxima and sums are taken of blocks first, and then of what these give. XLA for CPUs joins a maximum of all at
once to the product that makes the logits, which then takes a third longer, with bfloat16 weights twice as
long. And the best values lie in the blocks with the largest maxima, so that neither all are sorted nor each
is normalised.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_BLOCK = 128


class Blocks(NamedTuple):
    """Logits in blocks, filled up with minus infinity, and what is known of them.

    logits: float32[..., C, W]. maxima: float32[..., C]. maximum, log_sum: float32[...]; log softmax is
    (logits - maximum) - log_sum.
    """

    logits: Array
    maxima: Array
    maximum: Array
    log_sum: Array


def blocks(logits: Array) -> Blocks:
    """float32[..., V] -> the same in blocks."""
    count = -(-logits.shape[-1] // _BLOCK)
    filling = count * _BLOCK - logits.shape[-1]
    if filling:
        widths = [(0, 0)] * (logits.ndim - 1) + [(0, filling)]
        logits = jnp.pad(logits, widths, constant_values=-jnp.inf)
    parts = logits.reshape(*logits.shape[:-1], count, _BLOCK)
    maxima = jnp.max(parts, axis=-1)
    maximum = jnp.max(maxima, axis=-1)
    sums = jnp.sum(jnp.exp(parts - maximum[..., None, None]), axis=-1)
    return Blocks(parts, maxima, maximum, jnp.log(jnp.sum(sums, axis=-1)))


def log_normaliser(logits: Array) -> Array:
    """float32[..., V] -> float32[...]: the logarithm of the sum of their exponentials."""
    found = blocks(logits)
    return found.maximum + found.log_sum


def best_continuations(
    logits: Array, live_log_probs: Array, count: int
) -> tuple[Array, Array, Array]:
    """The likeliest continuations of the beams of each input, as `lax.top_k` of all of them orders these.

    Args:
      logits: float32[B * beams, V] of the piece that comes next.
      live_log_probs: float32[B, beams] of the beams.
      count: how many are wanted of an input.

    Returns:
      log-probabilities float32[B, count], the best first; beams int32[B, count]; pieces int32[B, count].
    """
    batch, beams = live_log_probs.shape
    found = jax.tree.map(lambda a: a.reshape(batch, beams, *a.shape[1:]), blocks(logits))

    known = found.maximum, found.log_sum, live_log_probs

    def total(logits: Array, maximum: Array, log_sum: Array, live: Array) -> Array:
        """log softmax of logits [..., W], and what their beams [...] have already."""
        return ((logits - maximum[..., None]) - log_sum[..., None]) + live[..., None]

    per_beam = found.maxima.shape[-1]
    all_maxima = total(found.maxima, *known).reshape(batch, beams * per_beam)
    # Equal values keep the order of `top_k`, the first one first: so the blocks stay in their order.
    few = min(count, beams * per_beam)
    chosen_BxC = jnp.sort(jax.lax.top_k(all_maxima, few)[1], axis=1)
    parts = found.logits.reshape(batch, beams * per_beam, _BLOCK)
    parts_BxCxW = jnp.take_along_axis(parts, chosen_BxC[:, :, None], axis=1)
    of_BxC = chosen_BxC // per_beam
    values_BxCxW = total(parts_BxCxW, *(jnp.take_along_axis(one, of_BxC, axis=1) for one in known))
    best, place = jax.lax.top_k(values_BxCxW.reshape(batch, few * _BLOCK), count)
    block = jnp.take_along_axis(chosen_BxC, place // _BLOCK, axis=1)
    return best, block // per_beam, block % per_beam * _BLOCK + place % _BLOCK
