# SPDX-License-Identifier: Apache-2.0
"""The blocks of a vocabulary give what all of it at once gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe.inference.decode import NEGATIVE
from kcmoe.inference.logits import best_continuations, log_normaliser


@pytest.mark.parametrize("size", [5, 500, 1280])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["different", "equal", "first"])
def test_continuations_are_top_k_with_its_order_of_equals(size: int, beams: int, kind: str) -> None:
    keys = jax.random.split(jax.random.key(size))
    if kind == "equal":
        logits = jax.random.randint(keys[0], (2 * beams, size), -2, 2).astype(jnp.float32)
        logits = jnp.sort(logits, axis=1)  # all beams have the same sum of exponentials nearly
        logits = jnp.tile(jnp.roll(logits[:1], size // 3, axis=1), (2 * beams, 1))
        live = jnp.zeros((2, beams))
    else:
        logits = 5 * jax.random.normal(keys[0], (2 * beams, size))
        live = jax.random.normal(keys[1], (2, beams))
        live = live.at[:, 1:].set(NEGATIVE) if kind == "first" else live
    count = 2 * beams if size > 5 else 2
    total = (jax.nn.log_softmax(logits).reshape(2, beams, size) + live[..., None]).reshape(2, -1)
    wanted, flat = jax.lax.top_k(total, count)
    found, beam, piece = jax.jit(best_continuations, static_argnums=2)(logits, live, count)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_array_equal(beam, flat // size)
    np.testing.assert_array_equal(piece, flat % size)


@pytest.mark.parametrize("size", [5, 500, 1280])
def test_the_normaliser_is_that_of_all(size: int) -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(300, 9, (2, 3, size)), jnp.float32)
    np.testing.assert_allclose(log_normaliser(logits), jax.nn.logsumexp(logits, axis=-1), rtol=1e-6)
