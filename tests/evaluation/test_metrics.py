# SPDX-License-Identifier: Apache-2.0
"""Metrics by hand, against scikit-learn and SciPy, and their standard errors against theory."""

from __future__ import annotations

import numpy as np
import pytest

from kcmoe.evaluation import metrics
from kcmoe.evaluation.report import _cell


def answers(seed: int, count: int = 400, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (some of them no class) and truths that agree about half of the time."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, count)
    predicted = np.where(rng.random(count) < 0.5, true, rng.integers(-1, classes, count))
    return predicted, true


def test_f1_by_hand() -> None:
    true = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, -1, 0])
    counts = metrics.confusion(predicted, true, 3)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]]
    # class 0: TP 2, FP 1, FN 1; class 1: TP 1, FP 1, FN 1; class 2: TP 0.
    np.testing.assert_allclose(metrics.f1_per_class(counts), [2 / 3, 1 / 2, 0])
    assert metrics.macro_f1(predicted, true, 3) == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert metrics.accuracy(predicted, true) == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_classes_against_scikit_learn(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with [dev]")
    predicted, true = answers(seed)
    assert metrics.macro_f1(predicted, true, 3) == pytest.approx(
        sklearn.f1_score(true, predicted, labels=[0, 1, 2], average="macro")
    )
    assert metrics.accuracy(predicted, true) == pytest.approx(
        sklearn.accuracy_score(true, predicted)
    )


@pytest.mark.parametrize("seed", range(3))
def test_correlations_against_scipy(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="SciPy comes with JAX")
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 26, 300) / 5  # many ties
    predicted = np.round(true + rng.normal(0, 1.5, 300), 1)
    assert metrics.pearson(predicted, true) == pytest.approx(stats.pearsonr(predicted, true)[0])
    assert metrics.spearman(predicted, true) == pytest.approx(stats.spearmanr(predicted, true)[0])
    np.testing.assert_array_equal(metrics.ranks(true), stats.rankdata(true))


def test_ranks_of_ties() -> None:
    assert metrics.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_correlation_with_a_constant_is_no_number() -> None:
    estimate = metrics.number_metric("spearman", np.ones(20), np.arange(20.0))
    assert np.isnan(estimate.value)
    assert np.isnan(estimate.standard_error)


def test_a_metric_of_another_kind_is_refused() -> None:
    classes, numbers = np.array([0, 1]), np.array([0.0, 1.0])
    with pytest.raises(KeyError):
        metrics.class_metric("spearman", classes, classes, 2)
    with pytest.raises(KeyError):
        metrics.number_metric("accuracy", numbers, numbers)


def test_accuracy_has_the_binomial_standard_error() -> None:
    predicted, true = answers(0, count=1000)
    estimate = metrics.class_metric("accuracy", predicted, true, 3)
    p = estimate.value
    assert estimate.standard_error == pytest.approx((p * (1 - p) / 1000) ** 0.5)


def test_bootstrap_of_macro_f1_is_the_one_over_examples() -> None:
    predicted, true = answers(1)
    estimate = metrics.class_metric("macro_f1", predicted, true, 3)
    rng = np.random.default_rng(9)
    draws = [rng.integers(0, 400, 400) for _ in range(2000)]
    spread = np.std([metrics.macro_f1(predicted[d], true[d], 3) for d in draws])
    assert estimate.standard_error == pytest.approx(spread, rel=0.1)
    assert metrics.class_metric("macro_f1", predicted, true, 3) == estimate  # fixed seed


def test_a_rare_class_adds_no_error_to_perfect_answers() -> None:
    """Draws without the only example of class 1 say nothing about its F1."""
    true = np.array([0] * 13 + [1])
    for classes, value in ((2, 1.0), (3, 2 / 3)):  # of class 2 there is nothing at all
        estimate = metrics.class_metric("macro_f1", true, true, classes)
        assert estimate.value == pytest.approx(value)
        assert estimate.standard_error == pytest.approx(0, abs=1e-12)


def test_bootstrap_of_pearson_is_near_its_theory() -> None:
    rng = np.random.default_rng(3)
    true = rng.normal(size=800)
    predicted = true + rng.normal(size=800)
    estimate = metrics.number_metric("pearson", predicted, true)
    theory = (1 - estimate.value**2) / 800**0.5  # of a bivariate normal
    assert estimate.standard_error == pytest.approx(theory, rel=0.15)
    assert metrics.number_metric("pearson", predicted, true) == estimate


def test_a_number_that_does_not_exist_says_why() -> None:
    constant = metrics.number_metric("spearman", np.ones(5), np.arange(5.0))
    assert _cell(constant) == "none: all answers, or all true scores, are equal"
    assert _cell(metrics.Measurement(0.5, float("nan"))) == "50.00 ± unknown"
    assert _cell(metrics.Measurement(0.5, 0.01)) == "50.00 ± 1.00"
