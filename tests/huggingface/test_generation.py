# SPDX-License-Identifier: Apache-2.0
"""`generate` there gives the ids that ours gives: greedy and with beams, in padded batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcmoe.checkpoint import writing
from kcmoe.inference.predict import LanguageModel

pytestmark = pytest.mark.huggingface

LENGTHS = (3, 21, 8, 1, 14, 22, 5, 17, 2, 11) * 4


@pytest.fixture(scope="module")
def inputs() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [[*rng.integers(3, 32_000, length - 1).tolist(), 1] for length in LENGTHS]


def our_ids(lm: LanguageModel, inputs: Any, tokens: int, beams: int, alpha: float) -> np.ndarray:
    return lm.batched.generate(inputs, tokens, beam_size=beams, alpha=alpha)


def their_ids(
    folder: Path, inputs: Any, tokens: int, trust: bool = True, **options: Any
) -> np.ndarray:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=trust).eval()
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
    ended = (expected == 0).any(axis=1)
    assert ended.any() and (tokens == 12 or not ended.all())


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_length_penalty_is_alpha(
    sparse: Path, ours: LanguageModel, inputs: Any, alpha: float
) -> None:
    expected = our_ids(ours, inputs, 8, 3, alpha)
    assert np.array_equal(their_ids(sparse, inputs, 8, num_beams=3, length_penalty=alpha), expected)


def test_streamed_greedy_ids_end_at_the_first_end(sparse: Path, inputs: Any) -> None:
    from transformers.generation.streamers import BaseStreamer

    class Streamer(BaseStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: Any) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            pass

    streamer = Streamer()
    found = their_ids(sparse, inputs[:1], 12, streamer=streamer)[0]
    assert streamer.ids[1:] == found[found != 0].tolist()


def test_dense_twin_generates_greedily_as_ours(
    dense: Path, ours_dense: LanguageModel, inputs: Any
) -> None:
    expected = our_ids(ours_dense, inputs, 12, 1, 0.6)
    assert np.array_equal(their_ids(dense, inputs, 12), expected)
    # Without trust only the end may differ: T5X's search also ends where the end is the runner-up.
    plain = their_ids(dense, inputs, 12, trust=False)
    before_end = (expected != 1).cumprod(axis=1).astype(bool)
    assert np.array_equal(plain[before_end], expected[before_end])
    assert not np.array_equal(plain, expected)


def test_beams_of_a_dense_twin_are_ours_if_its_search_is_trusted(
    dense: Path, ours_dense: LanguageModel, inputs: Any
) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

    expected = our_ids(ours_dense, inputs, 12, 4, 0.6)
    assert np.array_equal(their_ids(dense, inputs, 12, num_beams=4), expected)
    model = AutoModelForSeq2SeqLM.from_pretrained(dense, trust_remote_code=True).eval()
    model.generate(torch.tensor([inputs[0]]), max_new_tokens=3, num_beams=2)
    assert type(model) is T5ForConditionalGeneration  # afterwards as before
    # Without trust transformers' own search runs, which puts ends behind the end at least.
    assert not np.array_equal(their_ids(dense, inputs, 12, trust=False, num_beams=4), expected)


def test_odd_sizes(checkpoint_of: Callable[..., Path], inputs: Any, tmp_path: Path) -> None:
    """More decoder than encoder layers, rows that grouped products refuse, one expert per token."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    layers = {"NUM_ENCODER_LAYERS": 1, "NUM_ENCODER_SPARSE_LAYERS": 1, "NUM_DECODER_LAYERS": 3}
    experts = {"NUM_EXPERTS": 3, "NUM_SELECTED_EXPERTS": 1, "EXPERT_MLP_DIM": 13}
    source = checkpoint_of(**layers, **experts, HEAD_DIM=5, EMBED_DIM=27)
    folder = writing.convert(source, tmp_path / "odd", "huggingface")
    expected = our_ids(LanguageModel.load(source), inputs[:4], 5, 1, 0.6)
    assert np.array_equal(their_ids(folder, inputs[:4], 5), expected)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    assert model.config._experts_implementation == "eager"
    model(input_ids=torch.tensor([[3, 1]]), labels=torch.tensor([[4, 1]])).loss.backward()
