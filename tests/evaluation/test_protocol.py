# SPDX-License-Identifier: Apache-2.0
"""Both protocols on a model whose answers are laid down: what counts as right, wrong and no answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kcmoe.config import gin_files
from kcmoe.data.labelled import Example
from kcmoe.errors import UserError
from kcmoe.evaluation import protocol
from kcmoe.inference.answers import answers
from kcmoe.inference.batching import BatchedModel
from kcmoe.inference.compute import Jitted
from kcmoe.tasks.registry import TASKS, Task
from kcmoe.training.inputs import Inputs
from kcmoe.training.settings import Settings
from kcmoe.vocabulary import Vocabulary

VOCABULARY = Vocabulary()
PARAMS = {"weight": np.zeros(3)}
NO_MODULE: Any = None
MODEL = BatchedModel(Jitted(NO_MODULE, PARAMS), longest=32, tokens=64)


def examples(targets: Sequence[str]) -> list[Example]:
    return [Example(str(i), f"문장 {i}", target, {}) for i, target in enumerate(targets)]


def questions(task: Task, targets: Sequence[str]) -> protocol.Questions:
    return protocol.Questions(task, examples(targets), VOCABULARY, max_inputs=32)


@pytest.fixture
def generates(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the model generate the given texts."""

    def lay_down(texts: Sequence[str]) -> None:
        def generate(model: Any, inputs: Any, max_tokens: int, **_: Any) -> np.ndarray:
            found = np.zeros((len(texts), max_tokens), np.int32)
            for row, text in zip(found, texts, strict=True):
                ids = [*VOCABULARY.encode(text), VOCABULARY.eos_id]
                row[: len(ids)] = ids
            return found

        monkeypatch.setattr(BatchedModel, "generate", generate)

    return lay_down


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the model give the given log-likelihoods."""

    def lay_down(rows: Sequence[Sequence[float]]) -> None:
        monkeypatch.setattr(BatchedModel, "rank", lambda *_, **__: np.array(rows, np.float32))

    return lay_down


def value(outcome: protocol.ProtocolResult, name: str) -> float:
    return outcome.metrics[name].value


def test_generate_wants_the_exact_word(generates: Any) -> None:
    generates(["긍정적", "긍정적입니다", "부정적", ""])
    asked = questions(TASKS["nsmc"], ["긍정적", "긍정적", "긍정적", "부정적"])
    outcome = asked.generate(MODEL, max_targets=8)
    assert value(outcome, "accuracy") == 0.25
    assert outcome.unknown == 2
    assert outcome.answers == ["긍정적", "긍정적입니다", "부정적", ""]


def test_rank_takes_the_likeliest(ranks: Any) -> None:
    ranks([[-3.0, -1.0], [-1.0, -1.5], [-2.0, -9.0]])
    outcome = questions(TASKS["nsmc"], ["긍정적", "긍정적", "부정적"]).rank(MODEL)
    assert value(outcome, "accuracy") == pytest.approx(2 / 3)
    assert outcome.answers == ["긍정적", "부정적", "부정적"]


def test_metrics_come_in_the_order_of_the_task(ranks: Any) -> None:
    ranks(np.eye(3) * 5)
    outcome = questions(TASKS["hate_speech"], ["혐오", "공격적", "문제없음"]).rank(MODEL)
    assert list(outcome.metrics) == ["macro_f1", "accuracy"]
    assert value(outcome, "macro_f1") == 1.0


def test_rank_of_numbers_is_their_weighted_mean(ranks: Any) -> None:
    words = answers(TASKS["korsts"])
    low, high = words.index("1.0"), words.index("2.0")
    rows = np.full((3, len(words)), -50.0)
    rows[0, low] = rows[1, high] = 0.0
    rows[2, [low, high]] = np.log([0.25, 0.75])
    ranks(rows)
    outcome = questions(TASKS["korsts"], ["0.0", "5.0", "2.6"]).rank(MODEL)
    assert outcome.answers == ["1.0000", "2.0000", "1.7500"]
    assert value(outcome, "spearman") == pytest.approx(1.0)


def test_generated_text_that_is_no_number_counts_as_minus_one(generates: Any) -> None:
    generates(["3.4", "모름", "inf", "1.0"])
    outcome = questions(TASKS["korsts"], ["5.0", "0.0", "0.2", "2.0"]).generate(
        MODEL, max_targets=8
    )
    assert outcome.unknown == 2
    expected = np.corrcoef([3.4, -1, -1, 1.0], [5.0, 0.0, 0.2, 2.0])[0, 1]
    assert value(outcome, "pearson") == pytest.approx(expected)


def test_free_text_has_accuracy_only(generates: Any) -> None:
    task = dataclasses.replace(TASKS["nsmc"], name="own", labels={}, metrics=("accuracy",))
    generates(["서울", "부산"])
    outcome = questions(task, ["서울", "대구"]).generate(MODEL, max_targets=8)
    assert value(outcome, "accuracy") == 0.5


def test_inputs_are_cut_as_in_training() -> None:
    long = [Example("0", "영화 " * 100, "긍정적", {})]
    (ids,) = protocol.Questions(TASKS["nsmc"], long, VOCABULARY, max_inputs=32).inputs
    assert len(ids) == 32
    assert ids[-1] == VOCABULARY.eos_id


def test_metric_for_training(ranks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = protocol.EncoderDecoder

    def remember(config: Any) -> Any:
        seen.append(config)
        return real(config)

    monkeypatch.setattr(protocol, "EncoderDecoder", remember)
    ranks([[-3.0, -1.0], [-1.0, -1.5]])
    settings = _settings()
    made = protocol.training_metric(settings, _inputs(TASKS["nsmc"], ["긍정적", "긍정적"]))
    assert made is not None
    assert made.names == ("accuracy",)
    assert made.measure(PARAMS) == {"accuracy": 0.5}
    assert settings.model.routing == "capacity"
    assert seen[0].routing == "dropless"


@pytest.mark.parametrize(
    ("task", "targets"),
    [(TASKS["pretrain"], ["x"]), (TASKS["nsmc"], [])],
    ids=["no labels", "no rows"],
)
def test_no_metric_where_there_is_nothing_to_rank(task: Task, targets: Sequence[str]) -> None:
    assert protocol.training_metric(_settings(), _inputs(task, targets)) is None


def _inputs(task: Task, targets: Sequence[str]) -> Inputs:
    no_batches: Any = None
    return Inputs(no_batches, examples=examples(targets), task=task, vocabulary=VOCABULARY)


def _settings() -> Settings:
    files = ["configs/engine/engine.gin", "configs/sizes/tiny.gin", "configs/runs/pretrain.gin"]
    values = {
        "MODEL_DIR": "run", "MIXTURE_OR_TASK_NAME": "nsmc", "BATCH_SIZE": 4, "TRAIN_STEPS": 1,
        "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 8}, "EVAL_PERIOD": 1, "EVAL_STEPS": 1,
        "CHECKPOINT_PERIOD": 1, "LEARNING_RATE": 0.1,
    }  # fmt: skip
    return Settings.from_macros(gin_files.parse(files, [f"{k} = {v!r}" for k, v in values.items()]))


def test_answers() -> None:
    assert answers(TASKS["nsmc"]) == ("부정적", "긍정적")
    assert answers(TASKS["korsts"])[:3] == ("0.0", "0.2", "0.4")
    assert answers(TASKS["korsts"])[-1] == "5.0"
    assert answers(TASKS["pretrain"]) == ()
    wrong = dataclasses.replace(TASKS["korsts"], target_range=(5.0, 0.0))
    with pytest.raises(UserError, match="the lower one first"):
        answers(wrong)
