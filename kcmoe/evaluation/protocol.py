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
from kcmoe.hosts.group import ALONE, Hosts
from kcmoe.inference.answers import answers
from kcmoe.inference.batching import Advance, BatchedModel, default_tokens, inference_config
from kcmoe.inference.compute import Jitted
from kcmoe.inference.divided import DividedModel, own_copy
from kcmoe.inference.predict import probabilities
from kcmoe.model import current_platform
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.tasks.registry import Task
from kcmoe.training.inputs import Inputs
from kcmoe.training.settings import Settings
from kcmoe.training.validation import TaskMetric
from kcmoe.vocabulary import Vocabulary

_NO_NUMBER = -1.0
_FEW_ANSWERS, _SHORT_ANSWER = 8, 4  # more or longer ones would cost more than a compilation saves


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
      aligned: whether answers are filled up with padding to one length, so that tasks with as many answers
        share compiled programs; their numbers differ by rounding at most.
    """

    def __init__(
        self,
        task: Task,
        examples: Sequence[Example],
        vocabulary: Vocabulary,
        max_inputs: int,
        aligned: bool = False,
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
        if aligned and len(self.words) <= _FEW_ANSWERS:
            length = max(_SHORT_ANSWER, *map(len, self.word_ids))
            self.word_ids = [[*ids, *[0] * (length - len(ids))] for ids in self.word_ids]
        self._vocabulary = vocabulary

    def rank(self, model: BatchedModel, advance: Advance | None = None) -> ProtocolResult:
        """Chooses among `words`."""
        log_likelihoods = model.rank(self.inputs, self.word_ids, advance)
        task, words = self.task, self.words
        if task.target_step:
            values = probabilities(log_likelihoods) @ np.array(words, np.float64)
            measured = _measure_numbers(task, self.true, values)
            return ProtocolResult(measured, [f"{v:.4f}" for v in values], 0)
        if task.multi_label:
            each = multi_label.label_probabilities(task, probabilities(log_likelihoods))
            texts = [multi_label.text(task, row) for row in multi_label.likely(each)]
        else:
            texts = [words[i] for i in np.argmax(log_likelihoods, axis=1)]
        return measure_texts(task, self.true, texts)

    def generate(
        self, model: BatchedModel, max_targets: int, advance: Advance | None = None
    ) -> ProtocolResult:
        """Generates greedily, at most `max_targets` tokens."""
        found = model.generate(self.inputs, max_targets, advance=advance)
        return measure_texts(self.task, self.true, [self._vocabulary.decode(row) for row in found])


def measure_texts(task: Task, true: Sequence[str], texts: Sequence[str]) -> ProtocolResult:
    """The metrics of answers as text, whoever gave them.

    Args:
      task: the task.
      true: target texts of its examples.
      texts: as many answers; what is no label or no number is wrong.
    """
    texts, words = list(texts), answers(task)
    if task.target_step:
        values = np.array([_number(text) for text in texts])
        measured = _measure_numbers(task, true, values)
        return ProtocolResult(measured, texts, int(np.isnan(values).sum()))
    if task.multi_label:
        predicted, known = multi_label.named(task, texts), multi_label.named(task, true)
        measured = {name: multi_label.measure(name, predicted, known) for name in task.metrics}
        return ProtocolResult(measured, texts, int((~predicted.any(axis=1)).sum()))
    if not words:  # free text is right or wrong: every distinct text is a class of its own
        right = np.array([text == one for text, one in zip(texts, true, strict=True)], np.int64)
        return ProtocolResult(_measure_classes(task, right, np.ones_like(right), 2), texts, 0)
    number = {word: i for i, word in enumerate(words)}
    chosen = np.array([number.get(text, -1) for text in texts])
    known = np.array([number[text] for text in true])
    measured = _measure_classes(task, chosen, known, len(words))
    return ProtocolResult(measured, texts, int((chosen < 0).sum()))


def _measure_classes(
    task: Task, chosen: np.ndarray, true: np.ndarray, classes: int
) -> dict[str, metrics.Measurement]:
    return {name: metrics.class_metric(name, chosen, true, classes) for name in task.metrics}


def _measure_numbers(
    task: Task, true: Sequence[str], values: np.ndarray
) -> dict[str, metrics.Measurement]:
    known = np.where(np.isnan(values), _NO_NUMBER, values)
    numbers = np.array(true, np.float64)
    return {name: metrics.number_metric(name, known, numbers) for name in task.metrics}


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return float("nan")
    return value if np.isfinite(value) else float("nan")


def training_metric(settings: Settings, inputs: Inputs, hosts: Hosts = ALONE) -> TaskMetric | None:
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
        tokens = default_tokens(sum(x.size for x in params.values()), current_platform())
        compute = Jitted(model, own_copy(params, hosts))
        outcome = questions.rank(DividedModel(compute, longest, tokens, hosts=hosts))
        return {name: estimate.value for name, estimate in outcome.metrics.items()}

    return TaskMetric(measure, task.metrics)
