# SPDX-License-Identifier: Apache-2.0
"""Gradients that are written out, against JAX's own of the plain formula."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kcmoe.model.attention import MASKED, softmax_attention
from kcmoe.model.cpu.gradients import column_sums
from kcmoe.model.layers import gated_gelu, matmul, rms_norm


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def agree(ours: Callable[..., Any], plain: Callable[..., Any], *arguments: jax.Array) -> None:
    """Values and gradients of both, for a random cotangent, to 1e-5 of the largest magnitude."""
    value, pull = jax.vjp(ours, *arguments)
    expected, pull_expected = jax.vjp(plain, *arguments)
    cotangent = random(*value.shape, seed=9)
    pairs = zip((value, *pull(cotangent)), (expected, *pull_expected(cotangent)), strict=True)
    for got, wanted in pairs:
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, atol=1e-5 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("features", [3, 8, 20])
def test_matmul(features: int) -> None:
    """The narrower factor of the kernel's gradient is laid out transposed: dy, either, x."""
    agree(matmul, jnp.dot, random(2, 5, 8), random(8, features, seed=1))


def test_rms_norm() -> None:
    def plain(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale

    dtype = jnp.dtype(jnp.float32)
    agree(lambda x, s: rms_norm(x, s, 1e-6, dtype), plain, random(2, 5, 8), random(8, seed=1))


def test_rms_norm_of_zeros_has_finite_gradients() -> None:
    """Padding may be all zeros."""
    norm = lambda x, s: rms_norm(x, s, 1e-6, jnp.dtype(jnp.float32)).sum()  # noqa: E731
    for gradient in jax.grad(norm, (0, 1))(jnp.zeros((3, 4)), jnp.ones(4)):
        assert np.isfinite(gradient).all()


def test_gated_gelu() -> None:
    far = jnp.asarray([-60.0, -9.0, 0.0, 9.0, 60.0])  # where the sigmoid is 0 or 1
    gate = jnp.concatenate([random(11), far])
    agree(gated_gelu, lambda gate, linear: nn.gelu(gate) * linear, gate, random(16, seed=1))


@pytest.mark.parametrize("biased", [True, False])
def test_softmax_attention(biased: bool) -> None:
    mask = jnp.where(random(2, 1, 5, 7, seed=5) > 0, 0.0, MASKED)
    mask = mask.at[0, 0, 0].set(MASKED)  # a query that may look nowhere looks everywhere alike
    bias = [random(1, 3, 5, 7, seed=4)] if biased else []

    def ours(q: jax.Array, k: jax.Array, v: jax.Array, *bias: jax.Array) -> jax.Array:
        return softmax_attention(q, k, v, mask, *(bias or (None,)))

    def plain(q: jax.Array, k: jax.Array, v: jax.Array, *bias: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(sum(bias, start=jnp.einsum("bhqk,bhsk->bhqs", q, k) + mask))
        return jnp.einsum("bhqs,bhsk->bhqk", weights, v)

    shapes = (random(2, 3, 5, 4), random(2, 3, 7, 4, seed=1), random(2, 3, 7, 4, seed=2))
    agree(ours, plain, *shapes, *bias)


def test_column_sums() -> None:
    np.testing.assert_allclose(
        column_sums(random(33, 7)), random(33, 7).sum(axis=0), rtol=1e-5, atol=1e-5
    )


BFLOAT16_CASES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "matmul": (matmul, [(2, 5, 8), (8, 3)]),
    "gated_gelu": (gated_gelu, [(3, 7), (3, 7)]),
    "rms_norm": (lambda x, s: rms_norm(x, s, 1e-6, jnp.dtype(jnp.bfloat16)), [(2, 5, 8), (8,)]),
    "softmax_attention": (
        lambda q, k, v, bias: softmax_attention(q, k, v, jnp.zeros((2, 1, 5, 7), q.dtype), bias),
        [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4), (1, 3, 5, 7)],
    ),
}


@pytest.mark.parametrize("name", BFLOAT16_CASES)
def test_bfloat16_gradients(name: str) -> None:
    """They have the dtype of what they are gradients of, and are float32's, coarsely."""
    function, shapes = BFLOAT16_CASES[name]
    arguments = [random(*shape, seed=i).astype(jnp.bfloat16) for i, shape in enumerate(shapes)]
    value, pull = jax.vjp(function, *arguments)
    assert value.dtype == jnp.bfloat16
    exact_value, exact_pull = jax.vjp(function, *(x.astype(jnp.float32) for x in arguments))
    cotangent = random(*value.shape, seed=9).astype(jnp.bfloat16)
    exact = exact_pull(cotangent.astype(exact_value.dtype))
    for got, wanted, argument in zip(pull(cotangent), exact, arguments, strict=True):
        assert got.dtype == argument.dtype
        largest = float(jnp.abs(wanted.astype(jnp.float32)).max())
        np.testing.assert_allclose(
            got.astype(jnp.float32), wanted.astype(jnp.float32), atol=0.03 * largest
        )


def test_the_switch_takes_jaxs_own_gradients() -> None:
    """The value is the formula's; with JAX's gradient of it, or with the written one."""
    script = """
import jax
from kcmoe.model.attention import softmax_attention
from kcmoe.model.dispatch import from_slots, grouped_dot, to_slots
from kcmoe.model.layers import gated_gelu, matmul, rms_norm
from kcmoe.training.losses import head_cross_entropy
for formula in (matmul, rms_norm, gated_gelu, softmax_attention, to_slots, from_slots, grouped_dot,
                head_cross_entropy):
    print(isinstance(formula, jax.custom_vjp))
"""
    for setting, own in (("1", "True"), ("0", "False")):
        env = {**os.environ, "KCMOE_OWN_GRADIENTS": setting}
        run = [sys.executable, "-c", script]
        done = subprocess.run(run, env=env, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [own] * 8


def test_formulas_and_written_gradients_agree() -> None:
    """The formula that stands in the model, undecorated, against what the model computes."""
    dtype = jnp.dtype(jnp.float32)
    agree(matmul, matmul.__wrapped__, random(2, 5, 8), random(8, 3, seed=1))
    agree(gated_gelu, gated_gelu.__wrapped__, random(11), random(11, seed=1))
    agree(
        lambda x, s: rms_norm(x, s, 1e-6, dtype),
        lambda x, s: rms_norm.__wrapped__(x, s, 1e-6, dtype),
        random(2, 5, 8),
        random(8, seed=1),
    )
    mask = jnp.where(random(2, 1, 5, 7, seed=5) > 0, 0.0, MASKED)
    agree(
        lambda q, k, v, bias: softmax_attention(q, k, v, mask, bias),
        lambda q, k, v, bias: softmax_attention.__wrapped__(q, k, v, mask, bias),
        random(2, 3, 5, 4),
        random(2, 3, 7, 4, seed=1),
        random(2, 3, 7, 4, seed=2),
        random(1, 3, 5, 7, seed=4),
    )
