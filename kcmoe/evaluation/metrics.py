# SPDX-License-Identifier: Apache-2.0
"""Accuracy, macro-F1, Pearson and Spearman, each with one standard error.

Accuracy has the binomial standard error; the others that of a bootstrap over examples with a fixed seed
(Efron and Tibshirani, 1993, ch. 6). Values are fractions (correlations -1 to 1), never per cent. Definitions
are scikit-learn's and SciPy's, against which the tests compare. Arrays of numbers in, numbers out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
SEED = 0


class Measurement(NamedTuple):
    """A metric and one standard error of it."""

    value: float
    standard_error: float


def accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """Share of equal entries of two int [N] arrays of classes."""
    return float(np.mean(predicted == true))


def confusion(predicted: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes + 1] counts of (true, predicted); -1, no label at all, is the last column."""
    columns = np.where(predicted < 0, classes, predicted)
    counts = np.bincount(true * (classes + 1) + columns, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def f1_per_class(counts: np.ndarray, absent: float = 0.0) -> np.ndarray:
    """2 TP / (2 TP + FP + FN), `absent` for 0/0: `confusion` [..., K, K + 1] -> float64 [..., K].

    An answer that is no label is a miss of the true class and a false alarm of none.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    either = counts.sum(axis=-1) + counts[..., :-1].sum(axis=-2)
    return np.divide(2 * hits, either, out=np.full_like(hits, absent), where=either > 0)


def macro_f1(predicted: np.ndarray, true: np.ndarray, classes: int) -> float:
    """Mean of F1 over the classes 0 to classes - 1; -1 in `predicted` is no class."""
    return float(f1_per_class(confusion(predicted, true, classes)).mean())


def pearson(predicted: np.ndarray, true: np.ndarray) -> float:
    """Correlation of two float [N] arrays; nan where one of them is constant."""
    x = predicted.astype(np.float64) - np.mean(predicted, dtype=np.float64)
    y = true.astype(np.float64) - np.mean(true, dtype=np.float64)
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean rank -> float64 [N]."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(predicted: np.ndarray, true: np.ndarray) -> float:
    """Pearson correlation of the ranks; nan where one array is constant."""
    return pearson(ranks(predicted), ranks(true))


def class_metric(name: str, predicted: np.ndarray, true: np.ndarray, classes: int) -> Measurement:
    """`accuracy` or `macro_f1` of int [N] classes; -1 in `predicted` is no class at all.

    Args:
      name: the metric.
      predicted: int [N], -1 to classes - 1.
      true: int [N], 0 to classes - 1.
      classes: number of classes.
    """
    function: Callable[[np.ndarray, np.ndarray, int], Measurement] = {
        "accuracy": _accuracy,
        "macro_f1": _macro_f1,
    }[name]
    return function(predicted, true, classes)


def _accuracy(predicted: np.ndarray, true: np.ndarray, classes: int) -> Measurement:
    del classes
    value = accuracy(predicted, true)
    return Measurement(value, float(np.sqrt(value * (1 - value) / len(true))))


def _macro_f1(predicted: np.ndarray, true: np.ndarray, classes: int) -> Measurement:
    counts = confusion(predicted, true, classes)
    # Resampling examples is drawing the cells of the confusion matrix from a multinomial distribution.
    shares = counts.reshape(-1) / counts.sum()
    draws = np.random.default_rng(SEED).multinomial(len(true), shares, RESAMPLES)
    # A draw without a class says nothing about its F1, so that of all examples stands in.
    f1 = f1_per_class(draws.reshape(RESAMPLES, *counts.shape), absent=float("nan"))
    spread = np.where(np.isnan(f1), f1_per_class(counts), f1).mean(axis=-1)
    return Measurement(macro_f1(predicted, true, classes), float(spread.std(ddof=1)))


def number_metric(name: str, predicted: np.ndarray, true: np.ndarray) -> Measurement:
    """`spearman` or `pearson` of float [N] arrays."""
    function: Callable[[np.ndarray, np.ndarray], float] = {
        "spearman": spearman,
        "pearson": pearson,
    }[name]
    rng = np.random.default_rng(SEED)
    spread = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, len(true), len(true))
        spread.append(function(predicted[chosen], true[chosen]))
    finite = np.array(spread)[np.isfinite(spread)]
    error = float(finite.std(ddof=1)) if finite.size > 1 else float("nan")
    return Measurement(function(predicted, true), error)
