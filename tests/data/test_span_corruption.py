# SPDX-License-Identifier: Apache-2.0
"""Span corruption: by hand, by property, and against t5's own functions where t5 is installed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kcmoe.data import span_corruption as sc
from kcmoe.data.shuffle import hashes, make_key
from kcmoe.errors import UserError


def keys(count, name="test"):
    return hashes(make_key(name), np.arange(count))


def test_pretraining_lengths():
    counts = sc.segment_counts(512)
    assert (counts.tokens, counts.inputs, counts.targets) == (568, 512, 114)


def test_one_mask_worked_by_hand():
    tokens = np.array([[10, 11, 12, 13, 14, 15, 16]])
    mask = np.array([[False, True, True, False, False, True, False]])
    inputs, targets = sc.corrupt(tokens, mask, first_sentinel=99, eos=1)
    assert inputs.tolist() == [[10, 99, 13, 14, 98, 16, 1]]
    assert targets.tolist() == [[99, 11, 12, 98, 15, 97, 1]]


def test_inputs_and_targets_together_hold_every_token_once():
    tokens = np.arange(1000, 1568)[None].repeat(8, axis=0)
    inputs, targets = sc.corrupt(tokens, sc.noise_masks(keys(8), 568), 32_099, 1)
    assert inputs.shape == (8, 512)
    assert targets.shape == (8, 114)
    for row in range(8):
        spans = {}
        for token in targets[row, :-1].tolist():
            if token > 32_000:
                spans[token] = []
                open_span = spans[token]
            else:
                open_span.append(token)
        rebuilt = [t for token in inputs[row, :-1].tolist() for t in spans.get(token, [token])]
        assert rebuilt == tokens[row].tolist()


@pytest.mark.parametrize("length", [2, 3, 7, 20, 100, 568])
def test_every_mask_has_the_same_counts(length):
    masks = sc.noise_masks(keys(200), length)
    counts = sc.mask_counts(length)
    assert (masks.sum(axis=1) == counts.noise).all()
    starts = masks[:, 1:] & ~masks[:, :-1]
    assert (starts.sum(axis=1) == counts.spans).all()
    assert not masks[:, 0].any()
    assert masks[:, -1].all()


def test_every_way_to_cut_is_equally_likely():
    """7 items in 3 spans: 15 ways; chi-square with 14 degrees of freedom stays below the 0.1 % point."""
    lengths = sc._span_lengths(7, 3, keys(30_000))
    ways = {w: 0 for w in itertools.product(range(1, 6), repeat=3) if sum(w) == 7}
    assert len(ways) == 15
    for row in map(tuple, lengths.tolist()):
        ways[row] += 1
    expected = 30_000 / 15
    assert sum((n - expected) ** 2 / expected for n in ways.values()) < 36.12


def test_masks_depend_on_their_key_alone():
    both = sc.noise_masks(keys(10), 100)
    assert (sc.noise_masks(keys(10)[[7, 2]], 100) == both[[7, 2]]).all()
    assert not (both[0] == both[1]).all()


@pytest.mark.parametrize(
    ("inputs", "targets", "sentinels", "message"),
    [
        (512, 113, 100, "targets of 114"),
        (512, 114, 27, "28 noise spans"),
        (1, 114, 100, "too short"),
    ],
)
def test_lengths_that_do_not_fit(inputs, targets, sentinels, message):
    assert sc.check_lengths(512, 114, 28).tokens == 568
    with pytest.raises(UserError, match=message):
        sc.check_lengths(inputs, targets, sentinels)


@pytest.mark.t5x
@pytest.mark.filterwarnings("ignore")
def test_the_same_function_as_t5():
    preprocessors = pytest.importorskip("t5.data.preprocessors", reason="t5 is not installed")
    import tensorflow as tf

    for inputs_length in (*range(8, 80), 128, 255, 256, 511, 512, 1024):
        expected = preprocessors.random_spans_helper(
            inputs_length=inputs_length,
            noise_density=0.15,
            mean_noise_span_length=3.0,
            extra_tokens_per_span_inputs=1,
            extra_tokens_per_span_targets=1,
        )
        counts = sc.segment_counts(inputs_length)
        assert (counts.tokens, counts.targets) == expected, inputs_length

    class Vocabulary:
        vocab_size = 32_100

    generator = np.random.default_rng(0)
    for length in (2, 5, 37, 300, 568):
        seeds = tf.constant([[length, 1], [length, 2]])
        mask = preprocessors.random_spans_noise_mask(length, 0.15, seeds).numpy()
        counts = sc.mask_counts(length)
        assert mask.sum() == counts.noise, length
        assert (mask & ~np.insert(mask[:-1], 0, False)).sum() == counts.spans
        tokens = generator.integers(3, 32_000, length).astype(np.int32)
        for each in (mask, generator.random(length) < 0.3):
            for ours, theirs in (
                (each, preprocessors.noise_span_to_unique_sentinel),
                (~each, preprocessors.nonnoise_span_to_unique_sentinel),
            ):
                expected = theirs(
                    tf.constant(tokens), tf.constant(each), Vocabulary(), None
                ).numpy()
                values, keep = sc.spans_to_sentinels(tokens, ours, 32_099)
                assert values[keep].tolist() == expected.tolist()
