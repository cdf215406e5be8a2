# SPDX-License-Identifier: Apache-2.0
"""`generate` there gives the ids that ours gives: greedy and with beams, in padded batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcmoe.inference.predict import LanguageModel

pytestmark = pytest.mark.huggingface

LENGTHS = (3, 21, 8, 1, 14, 22, 5, 17, 2, 11)


@pytest.fixture(scope="module")
def inputs() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [[*rng.integers(3, 32_000, length - 1).tolist(), 1] for length in LENGTHS]


def our_ids(lm: LanguageModel, inputs: Any, tokens: int, beams: int, alpha: float) -> np.ndarray:
    return lm.batched.generate(inputs, tokens, beam_size=beams, alpha=alpha)


def their_ids(folder: Path, inputs: Any, tokens: int, **options: Any) -> np.ndarray:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
    padded = AutoTokenizer.from_pretrained(folder).pad({"input_ids": inputs}, return_tensors="pt")
    with torch.no_grad():
        found = model.generate(**padded, max_new_tokens=tokens, **options)[:, 1:].numpy()
    return np.pad(found, ((0, 0), (0, tokens - found.shape[1])))


@pytest.mark.parametrize("cache", [True, False])
def test_greedy_ids_are_ours(sparse: Path, ours: LanguageModel, inputs: Any, cache: bool) -> None:
    expected = our_ids(ours, inputs, 12, 1, 0.6)
    assert np.array_equal(their_ids(sparse, inputs, 12, use_cache=cache), expected)
    assert len(np.unique(expected)) > 10


@pytest.mark.parametrize("tokens", [3, 12])
def test_beams_are_ours(sparse: Path, ours: LanguageModel, inputs: Any, tokens: int) -> None:
    expected = our_ids(ours, inputs, tokens, 4, 0.6)
    assert np.array_equal(their_ids(sparse, inputs, tokens, num_beams=4), expected)
    # A search that differs from the greedy one, and both beams that end and beams that are cut off.
    assert not np.array_equal(expected, our_ids(ours, inputs, tokens, 1, 0.6))


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_length_penalty_is_alpha(
    sparse: Path, ours: LanguageModel, inputs: Any, alpha: float
) -> None:
    expected = our_ids(ours, inputs, 8, 3, alpha)
    assert np.array_equal(their_ids(sparse, inputs, 8, num_beams=3, length_penalty=alpha), expected)


def test_dense_twin_generates_greedily_as_ours(
    dense: Path, ours_dense: LanguageModel, inputs: Any
) -> None:
    expected = our_ids(ours_dense, inputs, 12, 1, 0.6)
    assert np.array_equal(their_ids(dense, inputs, 12), expected)
