# SPDX-License-Identifier: Apache-2.0
"""Properties of the whole model: causality, independence of rows and padding, packing, cached decoding."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe import tree
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.training.optimizers.adafactor import Adafactor
from kcmoe.training.state import state_shapes, to_flat
from kcmoe.tree import nested

TREE = Path(__file__).parents[1] / "testdata" / "st_moe_base_tree.json.gz"


def test_full_size_tree_is_t5x_tree():
    """Path, shape, dtype and optimizer state of all leaves, without allocating them."""
    expected = json.loads(gzip.decompress(TREE.read_bytes()))
    files = ["configs/engine/engine.gin", "configs/sizes/base.gin"]
    config = ModelConfig.from_macros(gin_files.parse(files))
    ours = to_flat(state_shapes(config, Adafactor(decay_rate=0.8, step_offset=0)))
    assert set(ours) == set(expected["tree"])
    for path, leaf in expected["tree"].items():
        assert list(ours[path].shape) == leaf["shape"], path
        assert str(ours[path].dtype) == leaf["dtype"], path
    parameters = tree.total_values(tree.parameters(ours).values())
    assert parameters == expected["num_parameters"] == 700_641_024


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, batch):
    return EncoderDecoder(config).apply({"params": nested(params)}, **batch)


def test_decoder_is_causal(toy, params_of, batch):
    """The gradient of the logits at position t with respect to later decoder inputs is zero.

    Shown on the embedding rows of ids that occur only at later positions: they get no gradient. Dropless,
    because under capacity routing a later token of an earlier row can push a token out of an expert.
    """
    config = toy(ROUTING="dropless")
    params = params_of(config)
    ids = jnp.asarray([[0, 10, 11, 12, 13, 14]], jnp.int32)
    one = {
        "encoder_input_tokens": batch["encoder_input_tokens"][:1],
        "decoder_input_tokens": ids,
        "decoder_target_tokens": jnp.asarray([[10, 11, 12, 13, 14, 1]], jnp.int32),
    }
    one["encoder_input_tokens"] = jnp.where(
        one["encoder_input_tokens"] < 20, 20, one["encoder_input_tokens"]
    )
    position = 2

    def logit(embedding):
        changed = {**params, "token_embedder/embedding": embedding}
        return jnp.sum(logits_of(config, changed, one)[0, position] ** 2)

    grad = np.abs(np.asarray(jax.jit(jax.grad(logit))(params["token_embedder/embedding"])))
    assert np.all(grad[[12, 13, 14]] == 0)
    assert np.all(grad[[0, 10, 11]].sum(axis=1) > 0)


@pytest.mark.parametrize("dispatch", ["gather", "grouped"])
def test_dropless_rows_do_not_depend_on_the_other_rows(toy, params_of, batch, dispatch):
    """Bit for bit, at equal shapes: other rows may hold anything."""
    config = toy(ROUTING="dropless", DISPATCH=dispatch)
    params = params_of(config)
    before = logits_of(config, params, batch)
    others = {name: x.at[1:].set(jnp.roll(x[1:] * 7 % 61, 1, axis=1)) for name, x in batch.items()}
    after = logits_of(config, params, others)
    assert not np.array_equal(before[1], after[1])
    np.testing.assert_array_equal(before[0], after[0])


def test_capacity_rows_do_depend_on_the_other_rows(toy, params_of, batch):
    """Why inference is dropless: as in Flaxformer, a full expert drops whoever comes last."""
    config = toy(EVAL_EXPERT_CAPACITY_FACTOR=0.25)
    params = params_of(config)
    before = logits_of(config, params, batch)
    others = {
        name: x.at[:-1].set(jnp.roll(x[:-1] * 7 % 61, 1, axis=1)) for name, x in batch.items()
    }
    assert not np.allclose(before[-1], logits_of(config, params, others)[-1])


def test_dropless_rows_do_not_depend_on_padding(toy, params_of, batch):
    """More padding changes the shapes of products, and with them the last bits: within 1e-5."""
    config = toy(ROUTING="dropless")
    params = params_of(config)
    longer = {name: jnp.pad(x, ((0, 2), (0, 5))) for name, x in batch.items()}
    before, after = logits_of(config, params, batch), logits_of(config, params, longer)
    real = np.asarray(batch["decoder_target_tokens"]) > 0
    np.testing.assert_allclose(
        np.asarray(after)[:3, :7][real], np.asarray(before)[real], rtol=1e-5, atol=1e-5
    )


def test_packed_examples_do_not_see_each_other(toy, params_of):
    """Two examples in one row give the logits they give alone."""
    config = toy(ROUTING="dropless")
    params = params_of(config)
    rng = np.random.default_rng(3)

    def example(inputs, targets):
        ids = rng.integers(3, 64, targets)
        return rng.integers(3, 64, inputs), np.r_[0, ids[:-1]], ids

    first, second = example(5, 3), example(6, 4)
    packed = {
        name: jnp.asarray(np.r_[a, b][None], jnp.int32)
        for name, a, b in zip(
            ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens"),
            first,
            second,
            strict=True,
        )
    }
    packed["encoder_segment_ids"] = jnp.asarray([[1] * 5 + [2] * 6])
    packed["decoder_segment_ids"] = jnp.asarray([[1] * 3 + [2] * 4])
    together = logits_of(config, params, packed)[0]
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    for one, rows in ((first, slice(0, 3)), (second, slice(3, 7))):
        alone = {n: jnp.asarray(x[None], jnp.int32) for n, x in zip(names, one, strict=True)}
        np.testing.assert_allclose(
            together[rows], logits_of(config, params, alone)[0], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("beams", [1, 3])
def test_cached_decoding_equals_the_full_forward_pass(toy, params_of, batch, beams):
    config = toy(ROUTING="dropless")
    params = params_of(config)
    model, variables = EncoderDecoder(config), {"params": nested(params)}
    row = {name: x[:1] for name, x in batch.items()}  # without padding, which steps know nothing of
    full = logits_of(config, params, row)[0]
    length = row["decoder_input_tokens"].shape[1]

    @jax.jit
    def start(inputs):
        encoded = model.apply(variables, inputs, method="encode")
        return model.apply(variables, encoded, beams, length, method="start_cache")

    step = jax.jit(lambda *args: model.apply(variables, *args, method="step"))
    cache = start(row["encoder_input_tokens"])
    for position in range(length):
        ids = jnp.tile(row["decoder_input_tokens"][:, position], beams)
        logits, cache = step(cache, ids, jnp.asarray(position), row["encoder_input_tokens"])
        for beam in range(beams):
            np.testing.assert_allclose(logits[beam], full[position], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_rematerialisation_changes_no_number(toy, params_of, batch):
    def loss_and_grad(config):
        params = params_of(config)
        loss = jax.value_and_grad(lambda p: jnp.sum(logits_of(config, p, batch) ** 2))
        return jax.jit(loss)(params)

    plain, remat = toy(REMAT=False), toy(REMAT=True)
    assert plain != remat
    (value, grads), (other_value, other_grads) = loss_and_grad(plain), loss_and_grad(remat)
    np.testing.assert_allclose(other_value, value, rtol=1e-6)
    for path, grad in grads.items():
        np.testing.assert_allclose(other_grads[path], grad, rtol=1e-4, atol=1e-4)


def test_dense_twin_has_no_router(toy, params_of, batch):
    config = toy(NUM_ENCODER_SPARSE_LAYERS=0, NUM_DECODER_SPARSE_LAYERS=0)
    params = params_of(config)
    assert not any("expert" in path or "router" in path for path in params)
    assert np.all(np.isfinite(logits_of(config, params, batch)))
