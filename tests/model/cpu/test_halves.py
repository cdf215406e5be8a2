# SPDX-License-Identifier: Apache-2.0
"""Sums by halves are sums, and those of few rows have the bits of many."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe.model.cpu import halves


@pytest.mark.parametrize("width", [1, 3, 16, 33, 128])
def test_they_are_what_they_are_called_whatever_the_rows(width: int) -> None:
    values = jax.random.normal(jax.random.key(0), (1024, width)) * 4
    pairs = (
        (halves.softmax, jax.nn.softmax),
        (halves.mean, lambda values: jnp.mean(values, -1, keepdims=True)),
    )
    for ours, plain in pairs:
        many = jax.jit(ours)(values)
        np.testing.assert_allclose(many, plain(values), rtol=2e-6, atol=1e-6)
        for rows in (1, 8):
            np.testing.assert_array_equal(jax.jit(ours)(values[:rows]), many[:rows])
