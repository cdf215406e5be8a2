# SPDX-License-Identifier: Apache-2.0
"""Which expert takes which token, and at which place of its buffer.

Tokens choose their top-A experts. All first choices are placed before all second choices, each in token
order; what does not fit into C slots is dropped. Numbers, slot order and losses are Flaxformer's
TokensChooseMaskedRouter without batch prioritisation (flaxformer@399ea3a:architectures/moe/routing.py);
the group arithmetic is that of its MoeLayer (architectures/moe/moe_layers.py). Padding is routed like any
token. Differences: places are kept as indices instead of a [G, T, E, C] mask, and dropping can be turned off.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kcmoe.model.cpu import halves

MIN_EXPERT_CAPACITY = 4  # Flaxformer's MoeLayer.min_expert_capacity
_BLOCK = 128  # entries counted by one small product, see `earlier_equal`


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "expert_GxTxA",
        "place_GxTxA",
        "gate_GxTxA",
        "auxiliary_loss",
        "router_z_loss",
        "probs_GxTxE",
    ],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Routing:
    """Decisions of a router for G groups of T tokens.

    Attributes:
      expert_GxTxA: int32, the chosen experts, best first.
      place_GxTxA: int32, place in the expert's buffer; at or beyond its capacity means dropped.
      gate_GxTxA: float32, probability of each chosen expert (not renormalised over the chosen).
      auxiliary_loss: float32 scalar, load balance loss.
      router_z_loss: float32 scalar.
      probs_GxTxE: float32, the router's distribution.
    """

    expert_GxTxA: Array
    place_GxTxA: Array
    gate_GxTxA: Array
    auxiliary_loss: Array
    router_z_loss: Array
    probs_GxTxE: Array


def num_groups(tokens: int, max_group_size: int, expert_copies: int) -> int:
    """Number of routing groups: the smallest that Flaxformer finds viable.

    At least tokens / max_group_size (rounded down) and `expert_copies`, dividing the tokens and divisible
    by `expert_copies` (experts * replicas), so that groups spread evenly over experts.
    """
    groups = max(tokens // max_group_size, expert_copies)
    while groups < tokens and (tokens % groups or groups % expert_copies):
        groups += 1
    return groups


def expert_capacity(factor: float, tokens_per_group: int, experts: int) -> int:
    """Slots per expert and group: round(factor * T / E), at least 4. Not multiplied by A."""
    return max(round(factor * tokens_per_group / experts), MIN_EXPERT_CAPACITY)


def padded_shape(batch: int, length: int, expert_copies: int) -> tuple[int, int]:
    """Batch and length after the padding Flaxformer adds when tokens do not divide by the experts.

    Either the batch or the length grows, whichever needs fewer tokens; the length on a tie.
    """
    if batch * length % expert_copies == 0:
        return batch, length
    more_rows = next(
        n for n in range(1, expert_copies + 1) if (batch + n) * length % expert_copies == 0
    )
    more_columns = next(
        n for n in range(1, expert_copies + 1) if batch * (length + n) % expert_copies == 0
    )
    if more_columns * batch > more_rows * length:
        return batch + more_rows, length
    return batch, length + more_columns


def route(logits_GxTxE: Array, num_selected: int, *, by_halves: bool = False) -> Routing:
    """Chooses experts and places.

    Args:
      logits_GxTxE: float32 router logits.
      num_selected: A, how many experts a token chooses.
      by_halves: probabilities by `halves.softmax`, so that no number of rows changes a bit of them.
    """
    groups, tokens, experts = logits_GxTxE.shape
    softmax = halves.softmax if by_halves else jax.nn.softmax
    probs_GxTxE = softmax(logits_GxTxE)
    _, expert_GxTxA = jax.lax.top_k(probs_GxTxE, num_selected)
    chosen_GxTxAxE = jax.nn.one_hot(expert_GxTxA, experts, dtype=probs_GxTxE.dtype)
    gate_GxTxA = jnp.sum(probs_GxTxE[:, :, None, :] * chosen_GxTxAxE, axis=-1)

    # All first choices in token order, then all second ones. The place of a choice is the number of earlier
    # choices of the same expert.
    expert_GxAxT = jnp.swapaxes(expert_GxTxA, 1, 2)
    place_GxAT = earlier_equal(expert_GxAxT.reshape(groups, -1), experts)
    place_GxTxA = jnp.swapaxes(place_GxAT.reshape(groups, num_selected, tokens), 1, 2)

    return Routing(
        expert_GxTxA=expert_GxTxA,
        place_GxTxA=place_GxTxA,
        gate_GxTxA=gate_GxTxA,
        auxiliary_loss=load_balancing_loss(probs_GxTxE, chosen_GxTxAxE),
        router_z_loss=jnp.mean(jnp.square(jax.nn.logsumexp(logits_GxTxE, axis=-1))),
        probs_GxTxE=probs_GxTxE,
    )


def earlier_equal(values_GxP: Array, bound: int) -> Array:
    """int32[G, P] in [0, bound) -> int32[G, P]: how many earlier entries of the row hold the same value.

    A cumulative sum in two levels, each a product with a triangle of ones: within rows of I = 128 entries,
    and over the R rows before. Exact (counts stay far below 2^24, products in float32), fast everywhere, and
    unlike `jnp.cumsum` of odd lengths quick to compile on CPUs.
    """
    groups, entries = values_GxP.shape
    rows = -(-entries // _BLOCK)
    padded = jnp.pad(values_GxP, ((0, 0), (0, rows * _BLOCK - entries)), constant_values=-1)
    is_GxRxIxE = jax.nn.one_hot(padded.reshape(groups, rows, _BLOCK), bound, dtype=jnp.float32)
    in_row_GxRxIxE = jnp.einsum("ij,grje->grie", _earlier(_BLOCK), is_GxRxIxE, precision="highest")
    before_GxRxE = jnp.einsum(
        "ij,gje->gie", _earlier(rows), jnp.sum(is_GxRxIxE, axis=2), precision="highest"
    )
    counts = jnp.sum(is_GxRxIxE * (in_row_GxRxIxE + before_GxRxE[:, :, None]), axis=-1)
    return counts.reshape(groups, -1)[:, :entries].astype(jnp.int32)


def _earlier(n: int) -> np.ndarray:
    """float32[n, n]: 1 where the column is before the row."""
    return np.tri(n, k=-1, dtype=np.float32)


def load_balancing_loss(probs_GxTxE: Array, chosen_GxTxAxE: Array) -> Array:
    """E^2 * mean over groups and experts of (share of tokens choosing e) * (mean probability of e).

    Switch Transformer, arXiv:2101.03961, eq. (4)-(6), counting every one of the A choices. Only the
    probabilities carry a gradient.
    """
    experts = probs_GxTxE.shape[-1]
    share_GxE = jnp.mean(jnp.max(chosen_GxTxAxE, axis=2), axis=1)
    mean_GxE = jnp.mean(probs_GxTxE, axis=1)
    return jnp.mean(jax.lax.stop_gradient(share_GxE) * mean_GxE) * experts**2
