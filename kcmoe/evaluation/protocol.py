# SPDX-License-Identifier: Apache-2.0
"""Two ways to let the model answer, and the metrics of its answers.

`generate`, as published: the answer is generated and must match the label word exactly; a text that is no
label is wrong, one that is no number counts as -1 (as in t5's postprocessors). `rank`: every possible answer
is scored and the likeliest wins; for numbers, the mean of all numbers weighted by their probability. Both
see the same ids as training did. Which split is read is the caller's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kcmoe.data.features import with_eos
from kcmoe.data.labelled import Example, check_answers
from kcmoe.evaluation import metrics, multi_label
from kcmoe.inference.answers import answers
from kcmoe.inference.batching import Advance, BatchedModel, default_tokens, inference_config
from kcmoe.inference.predict import probabilities
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.tasks.registry import Task
from kcmoe.training.inputs import Inputs
from kcmoe.training.settings import Settings
from kcmoe.training.validation import TaskMetric
from kcmoe.vocabulary import Vocabulary

_NO_NUMBER = -1.0


@dataclasses.dataclass(frozen=True)
class ProtocolResult:
    """What one protocol gave.

    Attributes:
      metrics: by name, in the order of the task.
      answers: the answer to each example, as text.
      unknown: how many answers are no label or no number.
    """

    metrics: dict[str, metrics.Measurement]
    answers: list[str]
    unknown: int


class Questions:
    """Examples of a task as ids, ready to be answered by any parameters.

    Args:
      task: the task.
      examples: labelled examples.
      vocabulary: turns their texts into ids.
      max_inputs: tokens of an input, EOS included; longer ones are cut, as in training.
    """

    def __init__(
        self,
        task: Task,
        examples: Sequence[Example],
        vocabulary: Vocabulary,
        max_inputs: int,
    ):
        eos = vocabulary.eos_id
        prompts = [example.inputs_text for example in examples]
        self.task = task
        check_answers(task, vocabulary)
        self.true = [example.target_text for example in examples]
        if not task.labels and not task.target_step:
            # Free text is compared as the vocabulary can say it, e.g. with single blanks.
            self.true = [vocabulary.decode(ids) for ids in vocabulary.encode_batch(self.true)]
        self.inputs = [with_eos(ids, max_inputs, eos) for ids in vocabulary.encode_batch(prompts)]
        self.words = answers(task)
        self.word_ids = [[*ids, eos] for ids in vocabulary.encode_batch(self.words)]
        self._vocabulary = vocabulary

    def rank(self, model: BatchedModel, advance: Advance | None = None) -> ProtocolResult:
        """Chooses among `words`."""
        log_likelihoods = model.rank(self.inputs, self.word_ids, advance)
        if self.task.target_step:
            values = probabilities(log_likelihoods) @ np.array(self.words, np.float64)
            return ProtocolResult(self._measure_numbers(values), [f"{v:.4f}" for v in values], 0)
        if self.task.multi_label:
            each = multi_label.label_probabilities(self.task, probabilities(log_likelihoods))
            return self._several(multi_label.likely(each))
        chosen = np.argmax(log_likelihoods, axis=1)
        return ProtocolResult(self._measure_classes(chosen), [self.words[i] for i in chosen], 0)

    def generate(
        self, model: BatchedModel, max_targets: int, advance: Advance | None = None
    ) -> ProtocolResult:
        """Generates greedily, at most `max_targets` tokens."""
        found = model.generate(self.inputs, max_targets, advance=advance)
        texts = [self._vocabulary.decode(row) for row in found]
        if self.task.target_step:
            values = np.array([_number(text) for text in texts])
            return ProtocolResult(self._measure_numbers(values), texts, int(np.isnan(values).sum()))
        if self.task.multi_label:
            return self._several(multi_label.named(self.task, texts), texts)
        if not self.words:
            return ProtocolResult(self._measure_texts(texts), texts, 0)
        number = {word: i for i, word in enumerate(self.words)}
        chosen = np.array([number.get(text, -1) for text in texts])
        return ProtocolResult(self._measure_classes(chosen), texts, int((chosen < 0).sum()))

    def _several(self, predicted: np.ndarray, texts: Sequence[str] | None = None) -> ProtocolResult:
        """The result where an example may have several labels; predicted: bool [N, labels]."""
        true = multi_label.named(self.task, self.true)
        measured = {name: multi_label.measure(name, predicted, true) for name in self.task.metrics}
        shown = list(texts or [multi_label.text(self.task, row) for row in predicted])
        return ProtocolResult(measured, shown, int((~predicted.any(axis=1)).sum()))

    def _measure_classes(self, chosen: np.ndarray) -> dict[str, metrics.Measurement]:
        number = {word: i for i, word in enumerate(self.words)}
        true = np.array([number[text] for text in self.true])
        return {
            name: metrics.class_metric(name, chosen, true, len(self.words))
            for name in self.task.metrics
        }

    def _measure_numbers(self, values: np.ndarray) -> dict[str, metrics.Measurement]:
        true = np.array(self.true, np.float64)
        known = np.where(np.isnan(values), _NO_NUMBER, values)
        return {name: metrics.number_metric(name, known, true) for name in self.task.metrics}

    def _measure_texts(self, texts: Sequence[str]) -> dict[str, metrics.Measurement]:
        """Free text is right or wrong: every distinct text is a class of its own."""
        right = np.array([text == true for text, true in zip(texts, self.true, strict=True)])
        ones = np.ones(len(right), np.int64)
        return {
            name: metrics.class_metric(name, right.astype(np.int64), ones, 2)
            for name in self.task.metrics
        }


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return float("nan")
    return value if np.isfinite(value) else float("nan")


def training_metric(settings: Settings, inputs: Inputs) -> TaskMetric | None:
    """The metrics of a run's task by `rank`, on its held-out examples, for use during training.

    Nothing is dropped, as in `kcmoe evaluate`.

    Returns:
      None for a mixture, and where a task has no labelled examples or no answers to choose from.
    """
    task, examples = inputs.task, inputs.examples
    if not isinstance(task, Task) or task.kind != "labelled" or not examples:
        return None
    if not answers(task) or not task.metrics:
        return None
    longest = settings.run.lengths["inputs"]
    questions = Questions(task, examples, inputs.vocabulary, longest)
    model = EncoderDecoder(inference_config(settings.model))

    def measure(params: Mapping[str, Any]) -> dict[str, float]:
        tokens = default_tokens(sum(x.size for x in params.values()))
        outcome = questions.rank(BatchedModel(model, params, longest, tokens))
        return {name: estimate.value for name, estimate in outcome.metrics.items()}

    return TaskMetric(measure, task.metrics)
