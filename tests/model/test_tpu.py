# SPDX-License-Identifier: Apache-2.0
"""What is done otherwise on TPUs gives the same numbers, and keeps less between the passes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kcmoe.model import tpu
from kcmoe.model.cpu import gradients
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.tree import nested


def test_layers_that_keep_products_alone_have_the_same_gradients(toy, params_of, batch):
    config = toy(EVAL_EXPERT_CAPACITY_FACTOR=1.0)
    params = params_of(config)

    def run(platform):
        def loss(params):
            logits = EncoderDecoder(config, platform).apply({"params": nested(params)}, **batch)
            return jnp.mean(jnp.sin(logits))

        gradient = jax.value_and_grad(loss)
        saved = jax.make_jaxpr(lambda p: jax.vjp(loss, p)[1])(params)
        given = sum(x.size for x in params.values())  # a part of what the backward pass is handed
        return jax.jit(gradient)(params), sum(v.aval.size for v in saved.jaxpr.outvars) - given

    (value, grads), kept = run("tpu")
    (expected, expected_grads), all_kept = run("cpu")
    assert 0 < kept < 0.85 * all_kept
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for path, ours in grads.items():
        np.testing.assert_allclose(ours, expected_grads[path], rtol=1e-4, atol=1e-7, err_msg=path)


def test_a_column_of_ones_adds_up_the_weights():
    weights = jax.random.uniform(jax.random.key(0), (2, 3, 5, 7))
    value = jax.random.normal(jax.random.key(1), (2, 3, 7, 4))
    for ours, expected in zip(
        tpu.mixed_and_total(weights, value),
        gradients._mixed_and_total(weights, value),
        strict=True,
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_the_head_by_way_of_the_logits_gradient():
    keys = jax.random.split(jax.random.key(0), 6)
    x, kernel = jax.random.normal(keys[0], (6, 4)), jax.random.normal(keys[1], (4, 9))
    exponentials, scale, right = (
        jax.random.uniform(key, shape)
        for key, shape in zip(keys[2:5], [(6, 9), (6, 1), (6, 1)], strict=True)
    )
    parts = (x, kernel, exponentials, scale, right, jnp.array([0, 8, 3, 3, 1, 0]))
    before = jax.random.normal(keys[5], (4, 9))
    for ours, expected in zip(
        tpu.head_gradients(*parts, before), gradients.head_gradients(*parts, before), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
