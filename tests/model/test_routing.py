# SPDX-License-Identifier: Apache-2.0
"""Routing worked by hand on a few tokens, and the group arithmetic of Flaxformer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe.model import dispatch, routing


def logits_for(choices: list[tuple[int, int]], experts: int) -> jax.Array:
    """Logits under which token i prefers choices[i][0], then choices[i][1]."""
    table = np.zeros((1, len(choices), experts), np.float32)
    for token, (first, second) in enumerate(choices):
        table[0, token, first], table[0, token, second] = 4.0, 2.0
    return jnp.asarray(table)


def test_places_by_hand():
    """First choices are placed before all second choices, each in token order.

    Tokens 0, 1, 2 choose expert 0 first; token 3 chooses it second. Expert 1 is token 3's first choice
    and the second choice of tokens 0 and 1.
    """
    routed = routing.route(logits_for([(0, 1), (0, 1), (0, 2), (1, 0)], experts=3), num_selected=2)
    np.testing.assert_array_equal(routed.expert_GxTxA[0], [[0, 1], [0, 1], [0, 2], [1, 0]])
    np.testing.assert_array_equal(routed.place_GxTxA[0], [[0, 1], [1, 2], [2, 0], [0, 3]])


def test_capacity_drops_the_last_placed():
    """With two slots, expert 0 keeps tokens 0 and 1, expert 1 keeps token 3 and then token 0."""
    routed = routing.route(logits_for([(0, 1), (0, 1), (0, 2), (1, 0)], experts=3), num_selected=2)
    slots = dispatch.capacity_slots(routed, experts=3, capacity=2)
    kept = np.asarray(slots.slot_of_NxA) < slots.choice_of_M.size
    np.testing.assert_array_equal(kept, [[True, True], [True, False], [False, True], [True, False]])
    x = jnp.arange(4.0)[:, None] + 1.0
    rows = np.asarray(dispatch.to_slots(x, slots))[:, 0].reshape(3, 2)
    np.testing.assert_array_equal(rows, [[1, 2], [4, 1], [3, 0]])  # 0 is an empty slot


def test_ties_go_to_the_lower_expert():
    """Padding is a zero vector, its logits are all zero: it asks for experts 0 and 1."""
    routed = routing.route(jnp.zeros((1, 3, 4)), num_selected=2)
    np.testing.assert_array_equal(routed.expert_GxTxA[0], [[0, 1]] * 3)


def test_balance_loss_by_hand():
    """Both tokens choose expert 0 with probability p: loss = 2^2 * mean(1 * p, 0 * (1 - p)) = 2 p."""
    p = 0.8
    logits = jnp.log(jnp.array([[[p, 1 - p], [p, 1 - p]]]))
    routed = routing.route(logits, num_selected=1)
    assert routed.auxiliary_loss == pytest.approx(2 * p, rel=1e-6)
    balanced = routing.route(jnp.log(jnp.array([[[p, 1 - p], [1 - p, p]]])), num_selected=1)
    assert balanced.auxiliary_loss == pytest.approx(1.0, rel=1e-6)


def test_z_loss_by_hand():
    routed = routing.route(jnp.log(jnp.array([[[1.0, 2.0, 1.0], [3.0, 1.0, 4.0]]])), num_selected=1)
    assert routed.router_z_loss == pytest.approx(
        (np.log(4.0) ** 2 + np.log(8.0) ** 2) / 2, rel=1e-6
    )


@pytest.mark.parametrize("entries", [1, 7, 128, 300])
def test_earlier_equal_counts(entries):
    values = np.random.default_rng(entries).integers(0, 5, (2, entries)).astype(np.int32)
    expected = [[int(np.sum(row[:i] == row[i])) for i in range(entries)] for row in values]
    np.testing.assert_array_equal(routing.earlier_equal(jnp.asarray(values), 5), expected)


@pytest.mark.parametrize(
    ("tokens", "max_group_size", "copies", "groups"),
    [
        (4096, 4096, 16, 16),  # at least as many groups as experts
        (131072, 4096, 16, 32),
        (128, 32, 4, 4),
        (120, 4096, 4, 4),
        (96, 16, 4, 8),  # 6 groups would not divide by 4 experts
    ],
)
def test_number_of_groups(tokens, max_group_size, copies, groups):
    assert routing.num_groups(tokens, max_group_size, copies) == groups


@pytest.mark.parametrize(
    ("factor", "tokens", "experts", "capacity"),
    [(1.25, 4096, 16, 320), (1.25, 30, 4, 9), (2.0, 4, 4, 4), (1.25, 16, 16, 4)],
)
def test_capacity(factor, tokens, experts, capacity):
    assert routing.expert_capacity(factor, tokens, experts) == capacity


@pytest.mark.parametrize(
    ("batch", "length", "copies", "expected"),
    [(8, 512, 16, (8, 512)), (5, 23, 4, (5, 24)), (5, 11, 4, (5, 12)), (3, 1, 4, (4, 1))],
)
def test_padding(batch, length, copies, expected):
    assert routing.padded_shape(batch, length, copies) == expected


def test_losses_move_the_router_and_only_through_probabilities():
    """Both losses have gradients at the logits; the balance loss pushes the busiest expert down."""
    logits = jnp.asarray(np.random.default_rng(0).normal(0.0, 0.1, (1, 16, 4)), jnp.float32)
    logits = logits.at[:, :, 2].add(1.0)
    balance = jax.grad(lambda x: routing.route(x, 1).auxiliary_loss)(logits)
    z = jax.grad(lambda x: routing.route(x, 1).router_z_loss)(logits)
    assert float(jnp.mean(balance[..., 2])) > 0 > float(jnp.mean(balance[..., 0]))
    assert np.all(np.asarray(z) > 0)
