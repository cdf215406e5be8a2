# SPDX-License-Identifier: Apache-2.0
"""Each check names both numbers and what to set."""

from __future__ import annotations

import pytest

from kcmoe import fits
from kcmoe.errors import UserError


@pytest.mark.parametrize(
    "lengths",
    [
        {"inputs": 64},
        {"inputs": 64, "targets": 1},
        {"inputs": 64, "targets": True},
        {"inputs": "x"},
    ],
)
def test_lengths_need_room_for_a_token_and_the_end(lengths: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"TASK_FEATURE_LENGTHS = .* at least 2"):
        fits.check_lengths(lengths)
    assert fits.check_lengths({"inputs": 2, "targets": 3}) == {"inputs": 2, "targets": 3}


def test_a_vocabulary_larger_than_the_embedding() -> None:
    fits.check_vocabulary("v.model", 32_100, 32_100)
    with pytest.raises(UserError, match=r"v\.model has 32,100 pieces, but NUM_EMBEDDINGS = 32,000"):
        fits.check_vocabulary("v.model", 32_100, 32_000)
    with pytest.raises(
        UserError, match=r"32,118 pieces, but the embedding of dir/c_1 has 32,100 rows"
    ):
        fits.check_vocabulary("v.model", 32_118, 32_100, "dir/c_1")


@pytest.mark.parametrize(
    ("batch", "microbatches", "devices", "words"),
    [
        (
            10,
            4,
            1,
            "10 is not a multiple of 4, which is NUM_MICROBATCHES = 4; set BATCH_SIZE to 8 or 12",
        ),
        (6, 1, 4, "6 is not a multiple of 4, which is 4 devices; set BATCH_SIZE to 4 or 8"),
        (
            8,
            4,
            4,
            "a multiple of 16, which is NUM_MICROBATCHES = 4 x 4 devices; set BATCH_SIZE to 16",
        ),
    ],
)
def test_batches_that_do_not_divide(
    batch: int, microbatches: int, devices: int, words: str
) -> None:
    with pytest.raises(UserError) as error:
        fits.check_batch(batch, microbatches, devices)
    assert words in str(error.value)
    assert fits.check_batch(16, 2, 4) == 2


def test_why_devices_are_fewer_is_said() -> None:
    with pytest.raises(UserError, match=r"which is 4 devices \(8 / NUM_MODEL_PARTITIONS = 2\)"):
        fits.check_batch(6, 1, 4, "8 / NUM_MODEL_PARTITIONS = 2")


def test_model_partitions() -> None:
    assert fits.check_model_partitions(2, 8, {"NUM_HEADS": 12}) == 4
    with pytest.raises(UserError, match="NUM_MODEL_PARTITIONS = 3 does not divide the 8 devices"):
        fits.check_model_partitions(3, 8, {})
    with pytest.raises(UserError, match="NUM_MODEL_PARTITIONS = 8 does not divide NUM_HEADS = 12"):
        fits.check_model_partitions(8, 8, {"NUM_HEADS": 12})


def test_experts() -> None:
    fits.check_expert_partitions(16, 16)
    with pytest.raises(UserError, match="NUM_EXPERT_PARTITIONS = 32 is more than NUM_EXPERTS = 16"):
        fits.check_expert_partitions(32, 16)
    fits.check_t5x_experts(6, 2, 8)
    with pytest.raises(UserError, match="NUM_EXPERTS = 6 cannot be divided over 4 devices"):
        fits.check_t5x_experts(6, 6, 8)


def test_disk() -> None:
    fits.check_disk("dir", 10, 10)
    with pytest.raises(UserError, match=r"dir: a checkpoint needs about 2\.0 GB and only 5 bytes"):
        fits.check_disk("dir", 2_000_000_000, 5)
