# SPDX-License-Identifier: Apache-2.0
"""Batches: fixed shapes, every line once, little padding."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from kcmoe.inference import batching

OF_1024 = functools.partial(batching.rows_of, tokens=1024)


def random_lengths(count: int, longest: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, longest + 1, (count, 1))


def test_every_line_is_in_exactly_one_batch_that_it_fits() -> None:
    lengths = random_lengths(777, 160)
    plan = batching.batches(lengths, [160], OF_1024)
    assert sorted(np.concatenate([one.indices for one in plan])) == list(range(777))
    for batch in plan:
        assert (lengths[batch.indices, 0] <= batch.lengths[0]).all()
        assert len(batch.indices) <= batch.rows


def test_shape_of_a_line_does_not_depend_on_other_lines() -> None:
    lengths = random_lengths(300, 160)
    together = {
        int(i): (one.rows, one.lengths)
        for one in batching.batches(lengths, [160], OF_1024)
        for i in one.indices
    }
    for i, length in enumerate(lengths):
        (alone,) = batching.batches(length[None], [160], OF_1024)
        assert (alone.rows, alone.lengths) == together[i]


def test_few_shapes_and_little_padding() -> None:
    lengths = np.random.default_rng(1).integers(22, 60, (5000, 1))
    plan = batching.batches(lengths, [512], OF_1024)
    assert len({one.lengths for one in plan}) <= 6
    computed = sum(one.rows * one.lengths[0] for one in plan)
    assert computed < 1.15 * lengths.sum()


@pytest.mark.parametrize(
    ("length", "longest", "expected"),
    [(1, 512, 16), (16, 512, 16), (17, 512, 20), (97, 160, 128), (129, 160, 160), (5, 10, 10)],
)
def test_padded_length(length: int, longest: int, expected: int) -> None:
    assert batching.padded_length(length, longest) == expected


def test_longer_than_the_longest_is_refused() -> None:
    with pytest.raises(ValueError, match="161 tokens"):
        batching.padded_length(161, 160)


@pytest.mark.parametrize(
    ("lengths", "tokens", "expected"),
    [((24,), 1024, 40), ((512,), 1024, 2), ((512,), 100, 1), ((16, 16), 1024, 32)],
)
def test_rows_come_by_fours_within_the_tokens(
    lengths: tuple[int, ...], tokens: int, expected: int
) -> None:
    assert batching.rows_of(lengths, tokens) == expected


@pytest.mark.parametrize(
    ("lengths", "tokens", "beams", "expected"),
    [
        ((40,), 1024, 1, 48),
        ((16,), 1024, 1, 48),
        ((64,), 1024, 1, 32),
        ((40,), 1024, 4, 12),
        ((512,), 256, 1, 1),
        ((40,), 16384, 1, 408),  # an accelerator
    ],
)
def test_a_search_has_more_rows_but_not_more_than_one_kernel_takes(
    lengths: tuple[int, ...], tokens: int, beams: int, expected: int
) -> None:
    assert batching.search_rows(lengths, tokens, beams) == expected


@pytest.mark.parametrize(
    ("lengths", "rows", "lines", "expected"),
    [
        ((40,), 24, 1, [2, 4]),
        ((16,), 64, 1, [4, 8]),
        ((24,), 40, 1, [4, 8]),
        ((64,), 16, 1, [1, 2]),
        ((512,), 2, 1, [1]),
        ((512,), 1, 1, []),  # nothing smaller
        ((40,), 24, 13, []),  # three batches are no faster than one of all rows
        ((20, 20), 24, 12, [2, 4]),
        ((40,), 48, 12, [2, 4]),
        ((40,), 48, 13, [24]),
        ((40,), 48, 25, []),
    ],
)
def test_few_lines_may_be_computed_in_few_rows(
    lengths: tuple[int, ...], rows: int, lines: int, expected: list[int]
) -> None:
    assert batching.few_rows(batching.PaddedBatch(np.arange(lines), rows, lengths)) == expected


def test_pad_fills_missing_rows_with_the_first() -> None:
    batch = batching.PaddedBatch(np.array([2, 0]), 3, (4,))
    padded = batch.pad([[5, 1], [9, 9, 9, 1], [7, 8, 1]])
    assert padded.tolist() == [[7, 8, 1, 0], [5, 1, 0, 0], [7, 8, 1, 0]]


def test_run_yields_in_order_and_counts_lines() -> None:
    plan = batching.batches(
        random_lengths(100, 64), [64], functools.partial(batching.rows_of, tokens=128)
    )
    done: list[int] = []
    seen = [
        (batch, result)
        for batch, result in batching.run(plan, lambda b: b.indices * 2, done.append)
    ]
    assert [batch for batch, _ in seen] == plan
    assert all((result == batch.indices * 2).all() for batch, result in seen)
    assert sum(done) == 100


def test_nothing_to_do() -> None:
    assert (
        batching.batches(
            np.zeros((0, 1), int), [64], functools.partial(batching.rows_of, tokens=128)
        )
        == []
    )
    assert list(batching.run([], lambda batch: batch)) == []
