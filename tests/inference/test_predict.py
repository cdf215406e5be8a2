# SPDX-License-Identifier: Apache-2.0
"""`kcmoe.load` and what it gives: right numbers, the same ones in any company, odd inputs."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kcmoe
from kcmoe import checkpoint
from kcmoe.errors import UserError
from kcmoe.inference.predict import LanguageModel
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.tasks.registry import TASKS
from kcmoe.tree import nested

WORDS = [
    "영화",
    "정말",
    "재미",
    "있다",
    "없다",
    "최악",
    "연기",
    "좋다",
    "ㅋㅋㅋ",
    "별로",
    "감동",
    "배우",
]


def reviews(count: int) -> list[str]:
    """Texts of many lengths, so of several buckets."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(0, 12))) for _ in range(count)]


def full_log_likelihood(model: LanguageModel, inputs: list[int], target: list[int]) -> float:
    """From the whole forward pass of one pair, of the same shape for all pairs that tests use."""
    ids = np.zeros((1, 6), np.int32)
    ids[0, : len(target)] = target
    encoder_ids = np.zeros((1, 40), np.int32)
    encoder_ids[0, : len(inputs)] = inputs
    log_probs = jax.nn.log_softmax(forward(model, encoder_ids, ids))[0]
    return float(sum(log_probs[i, token] for i, token in enumerate(target)))


def forward(model: LanguageModel, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    return np.asarray(_apply(model.model, model.loaded.params, inputs, shifted, targets))


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: EncoderDecoder, params: Any, *features: Any) -> Any:
    return module.apply({"params": nested(params)}, *features)


def test_probabilities_are_those_of_the_full_forward_pass(model: LanguageModel) -> None:
    text = "정말 재미 있다"
    (prediction,) = model.classify([text], task="nsmc")
    vocabulary = model.loaded.vocabulary
    inputs = [*vocabulary.encode(TASKS["nsmc"].inputs({"document": text})), 1]
    scores = [
        full_log_likelihood(model, inputs, [*vocabulary.encode(word), 1])
        for word in ("부정적", "긍정적")
    ]
    expected = np.exp(scores) / np.exp(scores).sum()
    found = [prediction.probabilities[word] for word in ("부정적", "긍정적")]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert prediction.label == ("부정적", "긍정적")[int(np.argmax(expected))]
    assert sum(found) == pytest.approx(1)


def test_score_is_that_of_the_full_forward_pass(model: LanguageModel) -> None:
    inputs, targets = ["오늘 <extra_id_0> 좋다", "짧다"], ["<extra_id_0> 날씨가", ""]
    found = model.score(inputs, targets)
    assert found.dtype == np.float32
    encode = model.loaded.vocabulary.encode_with_sentinels
    for value, text, target in zip(found, inputs, targets, strict=True):
        expected = full_log_likelihood(model, [*encode(text), 1], [*encode(target), 1])
        assert value == pytest.approx(expected, rel=1e-4)


def test_predictions_are_the_same_in_any_company(model: LanguageModel) -> None:
    texts = reviews(60)
    together = model.classify(texts, task="nsmc")
    assert len({one.probabilities["긍정적"] for one in together}) > 50, (
        "the test would show nothing"
    )
    order = np.random.default_rng(1).permutation(len(texts))
    shuffled = model.classify([texts[i] for i in order], task="nsmc")
    assert [shuffled[k] for k in np.argsort(order)] == together  # bit for bit
    alone = [model.classify([text], task="nsmc")[0] for text in texts[:10]]
    assert alone == together[:10]


def test_capacity_routing_does_depend_on_the_company(model_dir: Path) -> None:
    """Why dropless is the default; and that the test above could fail."""
    dropping = kcmoe.load(str(model_dir), ROUTING="capacity")
    assert dropping.loaded.config.routing == "capacity"
    texts = reviews(60)
    together = dropping.classify(texts, task="nsmc")
    # The last ones: rows that come first in a batch get a place with their experts.
    assert [dropping.classify([text], task="nsmc")[0] for text in texts[-10:]] != together[-10:]


def test_generated_text_is_the_same_in_any_company(model: LanguageModel) -> None:
    texts = [text + " <extra_id_0>" for text in reviews(20)]
    for beam_size in (1, 3):
        together = model.generate(texts, beam_size=beam_size)
        assert len(set(together)) > 1
        assert [model.generate([text], beam_size=beam_size)[0] for text in texts[:3]] == together[
            :3
        ]


def test_greedy_answer_takes_the_likeliest_tokens(model: LanguageModel) -> None:
    """One step by hand: the first generated token has the largest logit."""
    (ids,) = model.encode(["노래 좋다"])
    padded = np.array([ids + [0] * (40 - len(ids))], np.int32)
    logits = forward(model, padded, np.ones((1, 6), np.int32))
    first = int(np.argmax(logits[0, 0]))
    assert model.generate(["노래 좋다"], max_tokens=1) == [model.loaded.vocabulary.decode([first])]


def test_sentinels_are_text_in_classify_and_sentinels_in_generate(model: LanguageModel) -> None:
    vocabulary = model.loaded.vocabulary
    text = "오늘 <extra_id_0> 좋다"
    (plain,) = model.encode([text])
    (marked,) = model.encode([text], sentinels=True)
    assert vocabulary.sentinel_id(0) not in plain
    assert vocabulary.sentinel_id(0) in marked
    with pytest.raises(UserError, match="no <extra_id_100>"):
        model.generate(["<extra_id_100>"])


def test_empty_text_gets_an_answer(model: LanguageModel) -> None:
    assert len(model.classify(["", "좋다", ""], task="nsmc")) == 3
    assert model.classify([], task="nsmc") == []
    assert model.generate([]) == []
    assert model.score([], []).shape == (0,)


def test_a_very_long_text_is_cut_and_said_once(
    model: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    long = "영화 " * 33_334
    with caplog.at_level(logging.WARNING):
        first, second, third = model.classify(["좋다", long, long + "끝"], task="nsmc")
    (record,) = caplog.records
    assert "2 of 3 texts are longer than 63 tokens and were cut, the first being number 2" in (
        record.getMessage()
    )
    assert second == third != first


def test_number_task_chooses_among_its_numbers(model: LanguageModel) -> None:
    (prediction,) = model.classify([("비가 온다", "눈이 온다")], task="korsts")
    assert len(prediction.probabilities) == 26
    assert prediction.label == max(
        prediction.probabilities, key=prediction.probabilities.__getitem__
    )


def test_mistakes_in_calls(model: LanguageModel) -> None:
    with pytest.raises(UserError, match="Did you mean nsmc"):
        model.classify(["좋다"], task="nsmd")
    with pytest.raises(UserError, match="pretrain has no labels"):
        model.classify(["좋다"], task="pretrain")
    with pytest.raises(UserError, match=r"texts\[1\] is None"):
        model.generate(["좋다", None])
    with pytest.raises(UserError, match="2 inputs but 1 targets"):
        model.score(["가", "나"], ["다"])
    with pytest.raises(UserError, match="beam_size is 0"):
        model.generate(["좋다"], beam_size=0)


def test_task_of_the_run_is_the_default(model: LanguageModel) -> None:
    assert model.classify(["좋다"]) == model.classify(["좋다"], task="nsmc")


def test_model_directory_means_its_newest_checkpoint(toy: ModuleType, tmp_path: Path) -> None:
    folder = toy.make_model_dir(tmp_path, steps=(3, 20))
    assert kcmoe.load(str(folder)).loaded.step == 20
    assert kcmoe.load(str(folder / "checkpoint_3")).loaded.step == 3


def test_foreign_checkpoint_takes_a_config(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint_7").symlink_to(model_dir / "checkpoint_7")
    with pytest.raises(UserError, match=r"no config.gin beside .*name a gin file"):
        kcmoe.load(str(tmp_path / "checkpoint_7"))
    lm = kcmoe.load(str(tmp_path / "checkpoint_7"), config=str(model_dir / "config.gin"))
    assert lm.loaded.config.embed_dim == 16
    with pytest.raises(UserError, match=r"another size: .*EMBED_DIM 16 here, 128 expected"):
        kcmoe.load(str(tmp_path / "checkpoint_7"), config="configs/sizes/tiny.gin")


def test_half_precision_checkpoint(toy: ModuleType, model: LanguageModel, tmp_path: Path) -> None:
    folder = toy.make_model_dir(tmp_path)
    flat = {
        f"target/{name}": np.asarray(leaf.astype(jnp.bfloat16))
        for name, leaf in model.loaded.params.items()
    }
    checkpoint.save(folder, 8, {**flat, "state/step": np.asarray(8, np.int32)})
    narrow = kcmoe.load(str(folder / "checkpoint_8"))
    assert {leaf.dtype for leaf in narrow.loaded.params.values()} == {np.dtype(np.float32)}
    (a,), (b,) = narrow.classify(["좋다"]), model.classify(["좋다"])
    assert a.probabilities["긍정적"] == pytest.approx(b.probabilities["긍정적"], abs=0.05)


def test_weights_in_bfloat16_answer_nearly_the_same(model_dir: Path, model: LanguageModel) -> None:
    narrow = kcmoe.load(str(model_dir), PREDICT_WEIGHTS="bfloat16")
    kinds = {path: leaf.dtype.name for path, leaf in narrow.loaded.weights.items()}
    assert {kind for path, kind in kinds.items() if "/router/" in path} == {"float32"}
    assert kinds["decoder/logits_dense/kernel"] == "bfloat16"
    texts = reviews(20)
    ours, theirs = (
        [one.probabilities["긍정적"] for one in lm.classify(texts)] for lm in (narrow, model)
    )
    assert ours != theirs
    np.testing.assert_allclose(ours, theirs, atol=0.1)
    with pytest.raises(UserError, match="PREDICT_WEIGHTS = 'int4'"):
        kcmoe.load(str(model_dir), PREDICT_WEIGHTS="int4")


def test_mistakes_in_load(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint .*There are checkpoint_7"):
        kcmoe.load(str(model_dir / "checkpoint_8"))
    with pytest.raises(UserError, match=r"nothing is called ROUTIN.*Did you mean ROUTING"):
        kcmoe.load(str(model_dir), ROUTIN="dropless")
    with pytest.raises(UserError, match="PREDICT_TOKENS = 0"):
        kcmoe.load(str(model_dir), PREDICT_TOKENS=0)
    with pytest.raises(UserError, match="VOCABULARY_FILE"):
        kcmoe.load(str(model_dir), VOCABULARY_FILE=str(tmp_path / "none.model"))
    with pytest.raises(UserError, match=r"32,100 pieces, but the embedding .* has 50 rows"):
        kcmoe.load(str(model_dir), NUM_EMBEDDINGS=50)
