# SPDX-License-Identifier: Apache-2.0
"""The output head's chunked loss against the formula written down plainly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe.config import gin_files
from kcmoe.errors import UserError
from kcmoe.training import losses

TOKENS, WIDTH, VOCAB = 11, 5, 13


def plain(hidden, kernel, targets, weights, z_loss, smoothing):
    logits = hidden @ kernel
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target = jax.nn.one_hot(targets, VOCAB)
    wrong = smoothing / (VOCAB - 1)
    target = target * (1 - smoothing - wrong) + wrong
    loss = -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)
    if smoothing:
        loss += jnp.sum(target * jnp.log(target), axis=-1)
    z_term = z_loss * log_z**2
    correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return tuple(jnp.sum(x * weights) for x in (loss + z_term, z_term, correct))


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(rng.normal(size=(TOKENS, WIDTH)), jnp.float32),
        jnp.asarray(rng.normal(size=(WIDTH, VOCAB)), jnp.float32),
        jnp.asarray(rng.integers(0, VOCAB, TOKENS), jnp.int32),
        jnp.asarray(rng.integers(0, 2, TOKENS) / 7, jnp.float32),
    )


@pytest.mark.parametrize("chunk", [4, 2048])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_values_and_gradients(arrays, monkeypatch, chunk, smoothing):
    """One chunk, and three with the last one padded."""
    monkeypatch.setattr(losses, "CHUNK", chunk)
    hidden, kernel, targets, weights = arrays
    got = losses.head_cross_entropy(hidden, kernel, targets, weights, 0.01, smoothing)
    expected = plain(hidden, kernel, targets, weights, 0.01, smoothing)
    np.testing.assert_allclose(got, expected, rtol=1e-5)

    def ours(h, k):
        return 3.0 * losses.head_cross_entropy(h, k, targets, weights, 0.01, smoothing)[0]

    def theirs(h, k):
        return 3.0 * plain(h, k, targets, weights, 0.01, smoothing)[0]

    got_grads = jax.jit(jax.grad(ours, (0, 1)))(hidden, kernel)
    for got, expected in zip(got_grads, jax.grad(theirs, (0, 1))(hidden, kernel), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_huge_logits_stay_finite(arrays):
    hidden, kernel, targets, weights = arrays
    loss, _, _ = losses.head_cross_entropy(hidden * 1e4, kernel, targets, weights, 1e-4, 0.0)
    assert np.isfinite(loss)


def test_unknown_normalizer_names_the_choices():
    files = ["configs/engine/engine.gin", "configs/sizes/base.gin"]
    macros = gin_files.parse(files, ["LOSS_NORMALIZING_FACTOR='NUM_REAL_TARGETS'"])
    with pytest.raises(UserError, match="NUM_REAL_TARGET_TOKENS"):
        losses.LossConfig.from_macros(macros)
