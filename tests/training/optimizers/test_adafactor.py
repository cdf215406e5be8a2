# SPDX-License-Identifier: Apache-2.0
"""Adafactor's rules, each on an array small enough to follow. `kcmoe parity` compares with T5X."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe.training.optimizers import adafactor

EXPERT = "encoder/layers_1/mlp/expert/wi_0/kernel"
DENSE = "encoder/layers_0/mlp/wi_0/kernel"
ADAFACTOR = adafactor.Adafactor(decay_rate=0.8, step_offset=0)


def one_step(path, param, grad, state=None, step=0, rate=0.1):
    params = {path: jnp.asarray(param, jnp.float32)}
    states = state or ADAFACTOR.init(params)
    grads = {path: jnp.asarray(grad, jnp.float32)}
    new, new_states = ADAFACTOR.update(params, states, grads, jnp.int32(step), jnp.float32(rate))
    return np.asarray(new[path]), new_states


@pytest.mark.parametrize(
    ("path", "shape", "row", "column"),
    [
        ("token_embedder/embedding", (32128, 768), 1, 0),
        ("decoder/logits_dense/kernel", (768, 32128), 0, 1),
        (DENSE, (768, 2048), 0, 1),
        (DENSE, (127, 2048), None, None),  # too short to be worth factoring
        ("encoder/relpos_bias/rel_embedding", (12, 32), None, None),
        ("encoder/encoder_norm/scale", (768,), None, None),
        ("encoder/layers_1/mlp/router/router_weights/w/kernel", (768, 16), None, None),
        (EXPERT, (16, 768, 2048), 1, 2),
        (EXPERT, (4, 8, 8), 1, 2),  # experts are factored whatever their size
        ("encoder/layers_1/mlp/expert/wo/kernel", (16, 2048, 768), 2, 1),
    ],
)
def test_what_is_factored(path, shape, row, column):
    how = adafactor.factoring(path, shape)
    assert (how.row, how.column) == (row, column)


def test_first_step_of_an_unfactored_parameter():
    """The decay is 0 at the first step, so v = g^2 and the direction is sign(g), of size 1: not clipped."""
    param, grad = np.array([3.0, 4.0]), np.array([-0.5, 2.0])
    new, states = one_step("encoder/encoder_norm/scale", param, grad)
    rms = np.sqrt(np.mean(param**2))
    np.testing.assert_allclose(new, param - 0.1 * rms * np.sign(grad), rtol=1e-6)
    np.testing.assert_allclose(states["encoder/encoder_norm/scale"]["v"], grad**2, rtol=1e-6)


def test_small_parameters_still_move():
    """The scale of a parameter counts as at least 1e-3."""
    new, _ = one_step("encoder/encoder_norm/scale", np.zeros(2), np.array([1.0, -1.0]))
    np.testing.assert_allclose(new, [-1e-4, 1e-4], rtol=1e-6)


def test_updates_are_clipped_to_size_one():
    """A gradient that grows tenfold would make a step of more than 1: it is scaled back."""
    path, param = "encoder/encoder_norm/scale", np.ones(2)
    _, states = one_step(path, param, np.array([1.0, 1.0]))
    new, _ = one_step(path, param, np.array([10.0, 10.0]), state=states, step=9)
    np.testing.assert_allclose(new, param - 0.1, rtol=1e-5)


def test_a_factored_second_moment_of_rank_one_is_exact():
    """If g^2 is an outer product, row and column means say it all: the direction is sign(g)."""
    rng = np.random.default_rng(0)
    grad = np.outer(rng.uniform(1, 2, 128), rng.uniform(1, 2, 130)) * rng.choice(
        [-1, 1], (128, 130)
    )
    param = rng.normal(size=(128, 130))
    new, states = one_step(DENSE, param, grad)
    rms = np.sqrt(np.mean(param**2))
    np.testing.assert_allclose(new, param - 0.1 * rms * np.sign(grad), rtol=1e-4, atol=1e-5)
    shapes = {name: leaf.shape for name, leaf in states[DENSE].items()}
    assert shapes == {"m": (1,), "v": (1,), "v_row": (128,), "v_col": (130,)}


@pytest.mark.parametrize(
    ("path", "shape"),
    [("token_embedder/embedding", (150, 128)), (DENSE, (128, 150)), (EXPERT, (2, 128, 150))],
)
def test_update_is_the_papers_formula_where_rows_have_no_gradient(path, shape):
    """arXiv:1804.04235, algorithm 4, in float64. Rows of zeros (ids nobody used) have second moments of
    1e-30 and directions of 0: they must not count as moved in the root mean square that is clipped."""
    rng = np.random.default_rng(0)
    param, grads = rng.normal(size=shape), rng.normal(size=(2, *shape))
    grads[:, ..., ::8, :] = 0.0
    grads[1] *= 30.0  # clipped at the second step
    how = adafactor.factoring(path, shape)
    row, column = (-2, -1) if how.row < how.column else (-1, -2)
    expected, v_row, v_col, states, new = param, 0.0, 0.0, None, param
    for step, grad in enumerate(grads):
        decay = 1.0 - (step + 1.0) ** -0.8
        squared = grad**2 + 1e-30
        v_row = decay * v_row + (1 - decay) * squared.mean(column, keepdims=True)
        v_col = decay * v_col + (1 - decay) * squared.mean(row, keepdims=True)
        direction = grad / np.sqrt(v_row / v_row.mean(row, keepdims=True) * v_col)
        size = np.sqrt((direction**2).mean((-2, -1), keepdims=True))
        scale = np.sqrt((expected**2).mean((-2, -1), keepdims=True))
        expected = expected - 0.1 * scale * direction / np.maximum(1.0, size)
        new, states = one_step(path, new, grad, states, step)
    assert size.min() > 1.1
    np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-5)


def test_experts_do_not_influence_each_other():
    rng = np.random.default_rng(0)
    param, grad = rng.normal(size=(3, 5, 7)), rng.normal(size=(3, 5, 7))
    together, _ = one_step(EXPERT, param, grad)
    alone, _ = one_step(EXPERT, param[1:2], grad[1:2])
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-6)
    louder = grad.copy()
    louder[0] *= 100.0
    np.testing.assert_allclose(one_step(EXPERT, param, louder)[0][1], together[1], rtol=1e-6)


def test_gradient_scale_changes_the_state_and_not_the_step():
    """Why a run that changes engines must scale expert gradients as the other one did."""
    rng = np.random.default_rng(0)
    param, grad = rng.normal(size=(3, 5, 7)), rng.normal(size=(3, 5, 7))
    plain, states = one_step(EXPERT, param, grad)
    scaled, scaled_states = one_step(EXPERT, param, 16 * grad)
    np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        scaled_states[EXPERT]["v_row"], 256 * np.asarray(states[EXPERT]["v_row"]), rtol=1e-5
    )
