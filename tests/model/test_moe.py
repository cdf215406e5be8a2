# SPDX-License-Identifier: Apache-2.0
"""Properties of the MoE block that hold whatever the numbers are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe.model.dispatch_choice import resolve
from kcmoe.model.layers import MlpBlock
from kcmoe.model.moe import MoeLayer


def layer_and_params(config, x):
    layer = MoeLayer(config, "cpu")
    params = jax.jit(layer.init, static_argnums=2)(jax.random.key(1), x, True)["params"]
    params["router"]["router_weights"]["w"]["kernel"] *= 50.0
    return layer, params


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16)), jnp.float32)


def apply(layer, params, *args, **kwargs):
    """layer.apply, compiled."""
    return jax.jit(lambda p: layer.apply({"params": p}, *args, **kwargs))(params)


def test_copied_experts_with_room_for_all_are_one_dense_mlp(toy, x):
    """If all experts are equal and none overflows, output = dense MLP * sum of the chosen gates."""
    config = toy(EVAL_EXPERT_CAPACITY_FACTOR=8.0)
    layer, params = layer_and_params(config, x)
    expert = params["expert"]
    for name in ("wi_0", "wi_1", "wo"):
        first = expert[name]["kernel"][:1]
        expert[name]["kernel"] = jnp.tile(first, (config.num_experts, 1, 1))
    y, sown = apply(layer, params, x, True, mutable=["intermediates"])
    assert float(sown["intermediates"]["second_choice_dropped"]) == 0.0

    dense = MlpBlock(config.expert_mlp_dim, 0.0, config.scale, jnp.dtype(jnp.float32))
    dense_params = {name: {"kernel": expert[name]["kernel"][0]} for name in ("wi_0", "wi_1", "wo")}
    logits = x @ params["router"]["router_weights"]["w"]["kernel"]
    gates = jnp.sum(jax.lax.top_k(jax.nn.softmax(logits), 2)[0], axis=-1, keepdims=True)
    expected = gates * apply(dense, dense_params, x, True)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_every_dispatch_gives_the_same_output_and_gradients(toy, x):
    """gather = exchange = einsum = grouped = ragged, with drops and without."""

    def run(**settings):
        config = toy(**settings)
        layer, params = layer_and_params(config, x)

        def loss(params, x):
            y, sown = layer.apply({"params": params}, x, True, mutable=["intermediates"])
            return jnp.sum(jnp.sin(y)), sown["intermediates"]["second_choice_dropped"]

        (value, dropped), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
        return value, float(dropped), jax.tree.leaves(grads)

    for routing in ("capacity", "dropless"):
        common = {"ROUTING": routing, "EVAL_EXPERT_CAPACITY_FACTOR": 1.0}
        value, dropped, grads = run(DISPATCH="gather", **common)
        assert (dropped > 0) == (routing == "capacity")
        for way in ("exchange", "einsum", "grouped", "ragged"):
            other_value, _, other_grads = run(DISPATCH=way, **common)
            np.testing.assert_allclose(other_value, value, rtol=1e-5)
            for ours, theirs in zip(other_grads, grads, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_dropless_equals_capacity_where_nothing_overflows(toy, x):
    capacity = toy(EVAL_EXPERT_CAPACITY_FACTOR=8.0, DISPATCH="gather")
    dropless = toy(ROUTING="dropless", DISPATCH="grouped")
    layer, params = layer_and_params(capacity, x)
    expected = apply(layer, params, x, True)
    for way in ("grouped", "used"):
        layer = MoeLayer(dataclasses.replace(dropless, dispatch=way), "cpu")
        np.testing.assert_allclose(apply(layer, params, x, True), expected, rtol=1e-5, atol=1e-5)


def test_report_counts_what_is_dropped(toy, x):
    """All tokens alike: everybody wants the same two experts, and each group keeps 4 of 16 in each."""
    config = toy(EVAL_EXPERT_CAPACITY_FACTOR=1.0, GROUP_SIZE=16)
    same = jnp.tile(x[:1, :1], (4, 16, 1))
    layer, params = layer_and_params(config, same)
    _, sown = apply(layer, params, same, True, mutable=["intermediates"])
    report = {name: np.asarray(value) for name, value in sown["intermediates"].items()}
    assert report["first_choice_dropped"] == pytest.approx(0.75)
    assert report["second_choice_dropped"] == pytest.approx(0.75)
    assert report["fraction_tokens_left_behind"] == pytest.approx(0.75)
    assert report["expert_usage"] == pytest.approx(0.5)
    np.testing.assert_allclose(np.sort(report["expert_load"]), [0, 0, 0.5, 0.5])


def test_expert_dropout_only_in_training(toy, x):
    config = toy(EXPERT_DROPOUT_RATE=0.5)
    layer, params = layer_and_params(config, x)

    def run(seed, deterministic):
        return apply(layer, params, x, deterministic, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(run(0, True), run(1, True))
    assert not np.allclose(run(0, False), run(1, False))


def test_experts_compute_in_bfloat16_and_the_router_in_float32(toy, x):
    config = toy(MOE_TRUNCATED_DTYPE="bfloat16", ACTIVATION_DTYPE="bfloat16")
    layer, params = layer_and_params(config, x.astype(jnp.bfloat16))
    y, sown = apply(layer, params, x.astype(jnp.bfloat16), True, mutable=["intermediates"])
    assert y.dtype == jnp.bfloat16
    assert sown["intermediates"]["router_z_loss"].dtype == jnp.float32
    exact = apply(MoeLayer(toy(), "cpu"), params, x, True)
    assert float(jnp.max(jnp.abs(y.astype(jnp.float32) - exact))) < 0.2 * float(
        jnp.max(jnp.abs(exact))
    )


def test_auto_takes_another_way_where_most_slots_would_be_empty():
    """64 experts, 1,024 tokens: Flaxformer's least capacity makes 16 slots per token, of which 2 are used."""
    few = {"slots": 16_384, "choices": 2_048, "experts": 64, "platform": "cpu"}
    assert resolve("auto", "capacity", 1_024, **few) == "grouped"
    assert resolve("auto", "capacity", 4_096, **{**few, "choices": 8_192}) == "gather"
    assert resolve("einsum", "capacity", 1_024, **few) == "einsum"
    assert (
        resolve("auto", "capacity", 1_024, **{**few, "platform": "gpu"}) == "gather"
    )  # not measured
