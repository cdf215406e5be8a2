# SPDX-License-Identifier: Apache-2.0
"""Blocks of rows through their experts: whichever way matrices are taken out, and however they are held."""

from __future__ import annotations

import dataclasses
import typing

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from kcmoe.model.cpu.used_blocks import UsedBlocks
from kcmoe.model.dispatch_choice import Way
from kcmoe.model.moe import MoeLayer

BLOCK, WIDTH, HIDDEN, EXPERTS = 8, 6, 5, 4


@pytest.mark.parametrize(
    ("expert_of_block", "used"),
    [
        ([0, 0, 2, 3, 3, 3], 4),  # a matrix is taken out for each block
        ([1] * 9 + [3] * 6, 13),  # for each expert; the first and the third have none
        ([0, 1, 1, 2, *[3] * 11], 3),  # nothing of what is behind the blocks in use is computed
        ([0] * 12, 12),
        ([3] * 12, 0),
    ],
)
def test_each_block_in_use_goes_through_its_expert(expert_of_block: list[int], used: int) -> None:
    rng = np.random.default_rng(0)
    x_MxD = rng.normal(size=(BLOCK * len(expert_of_block), WIDTH)).astype(np.float32)
    first_ExDxF = rng.normal(size=(EXPERTS, WIDTH, HIDDEN)).astype(np.float32)
    second_ExFxD = rng.normal(size=(EXPERTS, HIDDEN, WIDTH)).astype(np.float32)

    @jax.jit
    def through(x, number, *weights):
        rows = UsedBlocks(jnp.asarray(expert_of_block, jnp.int32), number, BLOCK)
        return rows.through(lambda x, first, second: jnp.tanh(x @ first) @ second, x, *weights)

    found = through(x_MxD, jnp.int32(used), first_ExDxF, second_ExFxD)
    expected = np.zeros_like(x_MxD)
    for block, expert in enumerate(expert_of_block[:used]):
        rows = slice(block * BLOCK, (block + 1) * BLOCK)
        expected[rows] = np.tanh(x_MxD[rows] @ first_ExDxF[expert]) @ second_ExFxD[expert]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", typing.get_args(Way))
def test_bfloat16_held_as_integers_is_bfloat16_whatever_the_dispatch(toy, way: str) -> None:
    routing = "dropless" if way == "used" else "capacity"
    config = dataclasses.replace(toy(ROUTING=routing), dispatch=way)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16)), jnp.float32)
    layer = MoeLayer(config, "cpu")
    params = jax.jit(layer.init, static_argnums=2)(jax.random.key(1), x, True)["params"]
    narrow = {
        name: {"kernel": np.asarray(leaf["kernel"]).astype(ml_dtypes.bfloat16)}
        for name, leaf in params["expert"].items()
    }
    held = {name: {"kernel": leaf["kernel"].view(np.uint16)} for name, leaf in narrow.items()}
    plain, packed = (
        jax.jit(lambda p: layer.apply({"params": p}, x, True))({**params, "expert": expert})
        for expert in (narrow, held)
    )
    assert np.ptp(np.asarray(plain)) > 0
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(packed))
