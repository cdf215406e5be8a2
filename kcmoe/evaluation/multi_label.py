# SPDX-License-Identifier: Apache-2.0
"""Examples with several labels: which labels an answer has, and micro-F1, macro-F1 and exact accuracy.

Arrays are bool [N, K], K being the task's label words in order. F1 is scikit-learn's for such arrays, 0 for
a label that occurs neither in answers nor in truth. F1's standard error is that of a bootstrap over examples
with a fixed seed, accuracy's the binomial one, as in `metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kcmoe.evaluation.metrics import RESAMPLES, SEED, Measurement
from kcmoe.tasks.registry import Task


def named(task: Task, answers: Sequence[str]) -> np.ndarray:
    """The labels that each answer names, bool [N, K]; none where a part of an answer is not a label."""
    labels = np.zeros((len(answers), len(task.label_words)), bool)
    for row, answer in enumerate(answers):
        labels[row, list(task.labels_in(answer))] = True
    return labels


def label_probabilities(task: Task, probabilities: np.ndarray) -> np.ndarray:
    """How likely each label is, from the probabilities of whole answers.

    Args:
      task: a task with several labels to an example.
      probabilities: float [N, answers] of `task.label_answers`, each row with the sum 1.

    Returns:
      float [N, K]: the sum over the answers that name the label.
    """
    return probabilities @ named(task, task.label_answers).astype(probabilities.dtype)


def likely(label_probabilities: np.ndarray) -> np.ndarray:
    """Labels with a probability of one half or more, else the likeliest one; bool [N, K]."""
    labels = label_probabilities >= 0.5
    best = np.eye(labels.shape[1], dtype=bool)[label_probabilities.argmax(axis=1)]
    return np.where(labels.any(axis=1, keepdims=True), labels, best)


def text(task: Task, labels: np.ndarray) -> str:
    """The answer that names `labels`, bool [K]; "" for none."""
    values = {word: value for value, word in task.labels.items()}
    words = [word for word, has in zip(task.label_words, labels, strict=True) if has]
    return task.answer([values[word] for word in words]) if words else ""


def measure(name: str, predicted: np.ndarray, true: np.ndarray) -> Measurement:
    """`micro_f1`, `macro_f1` or `accuracy` (all labels of an example right) of bool [N, K] arrays."""
    if name == "accuracy":
        value = float((predicted == true).all(axis=1).mean())
        return Measurement(value, float(np.sqrt(value * (1 - value) / len(true))))
    # Of each example and label: hits, and how often it was answered or true.
    counts = np.stack([predicted & true, predicted, true]).astype(np.int64)
    rng, size = np.random.default_rng(SEED), len(true)
    f1 = [_f1(name, counts.sum(axis=1))]
    flat = counts.transpose(1, 0, 2).reshape(size, -1)
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, size, size), minlength=size)
        f1.append(_f1(name, (times @ flat).reshape(3, -1)))
    return Measurement(f1[0], float(np.std(f1[1:], ddof=1)))


def _f1(name: str, sums: np.ndarray) -> float:
    """F1 from sums of hits, answers and truths, int64 [3, K]."""
    hits, answered, true = sums.sum(axis=1, keepdims=True) if name == "micro_f1" else sums
    either = answered + true
    return float(np.divide(2 * hits, either, out=np.zeros(len(hits)), where=either > 0).mean())
