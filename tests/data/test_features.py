# SPDX-License-Identifier: Apache-2.0
"""Feature arrays worked by hand, and packing plans that hold every example once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kcmoe.data.features import (
    Features,
    Lengths,
    Ragged,
    model_features,
    one_per_row,
    several_per_row,
    with_eos,
)
from kcmoe.data.packing import efficiency, first_fit, one_each
from kcmoe.errors import UserError

INPUTS = Ragged.of([[5, 6, 1], [7, 1], [8, 9, 10, 1]])
TARGETS = Ragged.of([[20, 1], [21, 22, 1], [23, 1]])


def placed(
    members: list[int], rows: list[int], num_rows: int, lengths: Lengths, pack: bool = True
) -> Features:
    """Features of rows in which the examples above stand."""
    where = np.array(members), np.array(rows), num_rows
    inputs = several_per_row(INPUTS, *where, lengths.inputs)
    targets = several_per_row(TARGETS, *where, lengths.targets)
    return model_features(inputs, targets, pack)


def test_two_examples_in_a_row_worked_by_hand():
    features = placed([0, 1, 2], [0, 0, 2], 3, Lengths(6, 6))
    first = {name: values[0].tolist() for name, values in features.items()}
    assert first == {
        "encoder_input_tokens": [5, 6, 1, 7, 1, 0],
        "encoder_segment_ids": [1, 1, 1, 2, 2, 0],
        "encoder_positions": [0, 1, 2, 0, 1, 0],
        "decoder_target_tokens": [20, 1, 21, 22, 1, 0],
        "decoder_input_tokens": [0, 20, 0, 21, 22, 0],
        "decoder_loss_weights": [1, 1, 1, 1, 1, 0],
        "decoder_segment_ids": [1, 1, 2, 2, 2, 0],
        "decoder_positions": [0, 1, 0, 1, 2, 0],
    }
    assert not any(values[1].any() for values in features.values()), (
        "a row without a member is padding"
    )
    assert features["encoder_input_tokens"][2].tolist() == [8, 9, 10, 1, 0, 0]


def test_without_packing_eos_is_the_decoder_input_after_the_end():
    features = placed([1], [0], 1, Lengths(4, 5), pack=False)
    assert features["decoder_input_tokens"].tolist() == [[0, 21, 22, 1, 0]]
    assert set(features) == {
        "encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights",
    }  # fmt: skip
    assert all(values.dtype == np.int32 for values in features.values())


def test_full_rows_are_the_same_packed_or_single():
    tokens = np.arange(3, 15).reshape(2, 6)
    ragged = Ragged.of(tokens.tolist())
    packed = several_per_row(ragged, np.arange(2), np.arange(2), 2, 8)
    single = one_per_row(tokens, 8)
    for field in dataclasses.fields(single):
        assert (getattr(packed, field.name) == getattr(single, field.name)).all()


def test_eos_survives_the_cut():
    assert with_eos([5, 6, 7, 8], 3, 1) == [5, 6, 1]
    assert with_eos([], 3, 1) == [1]


def test_plans_hold_every_example_once_and_never_overflow():
    generator = np.random.default_rng(0)
    inputs, targets = generator.integers(1, 65, 3000), generator.integers(1, 17, 3000)
    lengths = Lengths(64, 16)
    plan = first_fit(inputs, targets, lengths, generator.permutation(3000))
    assert sorted(plan.members.tolist()) == list(range(3000))
    members, rows = plan.of_rows(np.arange(plan.num_rows))
    assert (np.bincount(rows, inputs[members]) <= 64).all()
    assert (np.bincount(rows, targets[members]) <= 16).all()
    assert efficiency(inputs.sum(), plan.num_rows, 64) > 0.8
    assert plan.num_rows < one_each(3000).num_rows


@pytest.mark.parametrize(
    "lengths", [{"inputs": 4}, {"inputs": 4, "targets": 1}, {"inputs": "4", "targets": 4}]
)
def test_lengths_are_checked(lengths):
    with pytest.raises(UserError, match="TASK_FEATURE_LENGTHS"):
        Lengths.of(lengths)
