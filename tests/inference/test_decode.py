# SPDX-License-Identifier: Apache-2.0
"""Beam search against every sequence there is, on a model small enough to try them all."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.inference.decode import beam_search
from kcmoe.inference.labels import LabelTree
from kcmoe.inference.score import label_log_likelihoods, target_log_likelihoods
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.interface import init_params

VOCAB, LENGTH, ALPHA = 6, 3, 0.6


@pytest.fixture(scope="module")
def toy():
    sizes = {
        "NUM_ENCODER_LAYERS": 1,
        "NUM_DECODER_LAYERS": 1,
        "NUM_ENCODER_SPARSE_LAYERS": 1,
        "NUM_DECODER_SPARSE_LAYERS": 1,
        "NUM_HEADS": 2,
        "HEAD_DIM": 4,
        "EMBED_DIM": 8,
        "MLP_DIM": 8,
        "NUM_EXPERTS": 2,
        "NUM_EMBEDDINGS": VOCAB,
        "SCALE": 4.0,
        "ROUTING": "dropless",
        "ACTIVATION_DTYPE": "float32",
    }
    files = ["configs/engine/engine.gin", "configs/sizes/base.gin"]
    bindings = [f"{name}={value!r}" for name, value in sizes.items()]
    config = ModelConfig.from_macros(gin_files.parse(files, bindings))
    params = jax.jit(init_params, static_argnums=(0, 1))(config, 3)
    inputs = jnp.asarray([[3, 4, 5, 2, 1], [5, 5, 3, 1, 0], [2, 1, 0, 0, 0]], jnp.int32)
    return EncoderDecoder(config), params, inputs


def all_ended_targets() -> np.ndarray:
    """Every target of up to LENGTH ids that ends with 1, padded with 0."""
    inner = [i for i in range(VOCAB) if i != 1]
    targets = [
        (*ids, 1, *(0,) * (LENGTH - n - 1))
        for n in range(LENGTH)
        for ids in itertools.product(inner, repeat=n)
    ]
    return np.asarray(targets, np.int32)


def log_likelihoods(model, params, inputs, targets):
    """float[B, number of targets]; every position up to the end counts, zeros inside too."""
    lengths = np.argmax(targets == 1, axis=1) + 1
    weights = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    rows = []
    apply = jax.jit(model.apply)
    for row in np.asarray(inputs):
        logits = apply(
            {"params": _nested(params)},
            jnp.tile(row, (len(targets), 1)),
            jnp.pad(jnp.asarray(targets)[:, :-1], ((0, 0), (1, 0))),
            # The ids only mask padding here; decoding masks nothing before the end.
            jnp.ones_like(targets),
        )
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.asarray(targets)[..., None], -1
        )[..., 0]
        rows.append(np.sum(np.asarray(chosen) * weights, axis=1))
    return np.stack(rows), lengths


def _nested(params):
    from kcmoe.tree import nested

    return nested(params)


def test_wide_beam_finds_the_best_of_all(toy):
    """With room for every prefix, the best ended beams are the best of all ended targets."""
    model, params, inputs = toy
    targets = all_ended_targets()
    targets = targets[~np.any((targets == 0) & (np.cumsum(targets == 1, axis=1) == 0), axis=1)]
    expected, lengths = log_likelihoods(model, params, inputs, targets)
    scores = expected / ((5 + lengths) / 6) ** ALPHA
    tokens, found = beam_search(model, params, inputs, max_decode_len=LENGTH, beam_size=30)
    for row in range(len(inputs)):
        best = np.argmax(scores[row])
        # Beams that began with padding are aligned to the left and may read like another one.
        beams = [tuple(beam) for beam in np.asarray(tokens[row])]
        alike = [at for at, beam in enumerate(beams) if beam == tuple(targets[best])]
        assert alike
        assert np.isclose(np.asarray(found)[row, alike], scores[row, best], rtol=1e-4).any()
        assert np.all(np.diff(np.asarray(found[row])) >= 0), "the best beam is last"


def test_one_beam_is_greedy(toy):
    model, params, inputs = toy
    tokens, _ = beam_search(model, params, inputs, max_decode_len=LENGTH, beam_size=1)
    apply = jax.jit(model.apply)
    for row, ids in enumerate(np.asarray(tokens)[:, 0]):
        prefix: list[int] = []
        for position in range(LENGTH):
            decoder_inputs = np.zeros((1, LENGTH), np.int32)
            decoder_inputs[0, 1 : position + 1] = prefix
            logits = apply(
                {"params": _nested(params)},
                inputs[row : row + 1],
                jnp.asarray(decoder_inputs),
                jnp.ones((1, LENGTH), jnp.int32),
            )
            prefix.append(int(jnp.argmax(logits[0, position])))
            if prefix[-1] == 1:
                break
        # T5X's greedy search keeps a second candidate: it may end where the runner-up is the end.
        if 1 in ids:
            end = list(ids).index(1)
            assert list(ids[:end]) == prefix[:end]
        else:
            assert list(ids) == prefix


def test_nothing_after_the_end(toy):
    model, params, inputs = toy
    tokens, _ = beam_search(model, params, inputs, max_decode_len=8, beam_size=4)
    for beam in np.asarray(tokens).reshape(-1, 8):
        if 1 in beam:
            assert not beam[list(beam).index(1) + 1 :].any()


def test_any_of_several_ids_ends_a_beam(toy):
    model, params, inputs = toy
    tokens, _ = beam_search(model, params, inputs, max_decode_len=8, beam_size=4)
    other = int(np.max(np.asarray(tokens)))
    ends = np.array([1, other], np.int32)
    ended, _ = beam_search(model, params, inputs, max_decode_len=8, beam_size=4, eos_id=ends)
    assert any(other in beam[:-1] and 1 not in beam for beam in np.asarray(ended).reshape(-1, 8))
    for beam in np.asarray(ended).reshape(-1, 8):
        at = np.flatnonzero(np.isin(beam, ends))
        assert not len(at) or not beam[at[0] + 1 :].any()


def test_leading_padding_moves_behind(toy):
    """A beam that begins with id 0 comes back aligned to the left, as T5X returns it, with its own score."""
    model, params, inputs = toy
    targets = all_ended_targets()
    expected, lengths = log_likelihoods(model, params, inputs, targets)
    scores = expected / ((5 + lengths) / 6) ** ALPHA
    tokens, found = map(
        np.asarray, beam_search(model, params, inputs, max_decode_len=LENGTH, beam_size=30)
    )
    assert np.all((tokens[..., 0] != 0) | ~tokens.any(axis=-1))
    padded_first = 0
    for row in range(len(inputs)):
        for beam, score in zip(tokens[row], found[row], strict=True):
            ids = np.trim_zeros(beam).tolist()
            # Left out: slots that no ended beam filled, and targets whose last input would be 0, for
            # which the full forward pass masks the logits (T5X's decoder logit mask).
            if score < -1e6 or 0 in ids or len(ids) < 2:
                continue
            alike = [i for i, target in enumerate(targets) if np.trim_zeros(target).tolist() == ids]
            matches = [i for i in alike if np.isclose(scores[row, i], score, rtol=1e-4)]
            assert matches, (beam, score)
            padded_first += targets[matches[0], 0] == 0
    assert padded_first, "the case must contain what it is about"


@pytest.mark.parametrize("dispatch", ["auto", "used"])  # all rows at once, and in parts
def test_label_scores_are_those_of_each_label_alone(toy, dispatch):
    """Labels share a row and what they begin with; the numbers are as if each had been decoded alone."""
    model, params, inputs = toy
    model = EncoderDecoder(dataclasses.replace(model.config, dispatch=dispatch))
    labels = [[4, 1], [1], [5, 3, 1], [5, 4, 1]]
    together = label_log_likelihoods(model, params, inputs, *LabelTree.of(labels).arrays)
    assert together.shape == (len(inputs), 4)
    filled = LabelTree.of([[*label, 0, 0] for label in labels])
    assert len(filled.ids) > 4
    again = label_log_likelihoods(model, params, inputs, *filled.arrays)
    np.testing.assert_allclose(again, together, rtol=1e-5, atol=1e-6)
    for k, label in enumerate(labels):
        targets = jnp.tile(jnp.asarray(label + [0] * (3 - len(label))), (len(inputs), 1))
        batch = {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": jnp.pad(targets[:, :-1], ((0, 0), (1, 0))),
            "decoder_target_tokens": targets,
        }
        alone = target_log_likelihoods(model, params, batch)
        np.testing.assert_allclose(together[:, k], alone, rtol=1e-5, atol=1e-6)
