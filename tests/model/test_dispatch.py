# SPDX-License-Identifier: Apache-2.0
"""Tokens reach their experts and come back, with the right gradients, whichever way they travel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kcmoe.model import dispatch, routing

EXPERTS, WIDTH, HIDDEN = 4, 6, 5
ALL = jnp.ones((24, 2), bool)


def routed_tokens(seed: int = 0) -> tuple[jax.Array, routing.Routing]:
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(24, WIDTH)), jnp.float32)
    logits = jnp.asarray(rng.normal(size=(2, 12, EXPERTS)), jnp.float32)
    return x, routing.route(logits, 2)


def test_gathers_have_the_gradients_of_plain_indexing():
    """The hand-written backward passes against JAX's own of the same forward pass."""
    x, routed = routed_tokens()
    slots = dispatch.capacity_slots(routed, EXPERTS, capacity=4)
    assert int(jnp.sum(slots.slot_of_NxA == slots.choice_of_M.size)) > 0, "nothing is dropped here"
    gate = routed.gate_GxTxA.reshape(24, 2)

    def written(x, gate):
        return jnp.sum(
            jnp.sin(dispatch.from_slots(jnp.tanh(dispatch.to_slots(x, slots)), gate, slots))
        )

    def plain(x, gate):
        token = slots.choice_of_M // 2
        rows = jnp.where((token < 24)[:, None], x[jnp.minimum(token, 23)], 0.0)
        back = jnp.concatenate([jnp.tanh(rows), jnp.zeros((1, WIDTH))])[slots.slot_of_NxA]
        return jnp.sum(jnp.sin(jnp.sum(gate[..., None] * back, axis=1)))

    for ours, theirs in zip(
        jax.jit(jax.grad(written, (0, 1)))(x, gate),
        jax.jit(jax.grad(plain, (0, 1)))(x, gate),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_grouped_slots_hold_every_choice_once_in_blocks_of_one_expert():
    _, routed = routed_tokens()
    chosen = routed.expert_GxTxA.reshape(24, 2)
    slots, expert_of_block = dispatch.grouped_slots(chosen, ALL, EXPERTS, block=8)
    slot = np.asarray(slots.slot_of_NxA)
    assert len(np.unique(slot)) == slot.size
    assert slot.max() < slots.choice_of_M.size == 8 * expert_of_block.size
    np.testing.assert_array_equal(np.asarray(expert_of_block)[slot // 8], chosen)
    np.testing.assert_array_equal(
        np.asarray(slots.choice_of_M)[slot.reshape(-1)], np.arange(slot.size)
    )


def test_grouped_slots_hold_only_what_is_kept():
    _, routed = routed_tokens()
    chosen = routed.expert_GxTxA.reshape(24, 2)
    kept = routed.place_GxTxA.reshape(24, 2) < 4
    slots, _ = dispatch.grouped_slots(chosen, kept, EXPERTS, block=8)
    slot, choices = np.asarray(slots.slot_of_NxA), np.asarray(slots.choice_of_M)
    kept = np.asarray(kept)
    assert 0 < kept.sum() < kept.size
    assert (slot[~kept] == choices.size).all()
    assert len(np.unique(slot[kept])) == kept.sum()
    np.testing.assert_array_equal(choices[slot[kept]], np.flatnonzero(kept))
    assert (choices < slot.size).sum() == kept.sum()  # the other slots are empty


def test_grouped_dot_is_each_row_times_its_experts_matrix():
    x, routed = routed_tokens()
    chosen = routed.expert_GxTxA.reshape(24, 2)
    slots, expert_of_block = dispatch.grouped_slots(chosen, ALL, EXPERTS, block=8)
    kernel = jnp.asarray(
        np.random.default_rng(1).normal(size=(EXPERTS, WIDTH, HIDDEN)), jnp.float32
    )
    rows = dispatch.to_slots(x, slots)
    expert_of_row = jnp.repeat(expert_of_block, 8)

    def grouped(rows, kernel):
        return jnp.sum(jnp.sin(dispatch.grouped_dot(rows, kernel, expert_of_block)))

    def plain(rows, kernel):
        return jnp.sum(jnp.sin(jnp.einsum("md,mdf->mf", rows, kernel[expert_of_row])))

    np.testing.assert_allclose(grouped(rows, kernel), plain(rows, kernel), rtol=1e-5)
    for ours, theirs in zip(
        jax.jit(jax.grad(grouped, (0, 1)))(rows, kernel),
        jax.jit(jax.grad(plain, (0, 1)))(rows, kernel),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
