# SPDX-License-Identifier: Apache-2.0
"""Several labels to an example: read from answers, ranked one by one, measured as scikit-learn does."""

from __future__ import annotations

import numpy as np
import pytest

from kcmoe.evaluation import multi_label
from kcmoe.tasks.registry import TASKS

KMHAS = TASKS["kmhas"]


def test_answers_name_labels():
    labels = multi_label.named(KMHAS, ["정치, 욕설", "문제없음", "정치, 글쎄", ""])
    assert [np.flatnonzero(row).tolist() for row in labels] == [[2, 3], [8], [], []]
    assert [multi_label.text(KMHAS, row) for row in labels] == ["정치, 욕설", "문제없음", "", ""]


def test_each_label_is_ranked_by_all_answers_that_name_it():
    answers = list(KMHAS.label_answers)
    probabilities = np.zeros((2, len(answers)))
    for answer, share in (("정치", 0.3), ("정치, 욕설", 0.3), ("욕설", 0.25), ("나이", 0.15)):
        probabilities[0, answers.index(answer)] = share
    for answer, share in (("정치", 0.4), ("욕설", 0.3), ("나이", 0.3)):
        probabilities[1, answers.index(answer)] = share
    each = multi_label.label_probabilities(KMHAS, probabilities)
    np.testing.assert_allclose(each[0, [2, 3, 4]], [0.6, 0.55, 0.15])
    # The likeliest answer of the first is "정치" or both; what is chosen is every label above one half.
    chosen = multi_label.likely(each)
    assert [multi_label.text(KMHAS, row) for row in chosen] == ["정치, 욕설", "정치"]


@pytest.mark.parametrize(("name", "average"), [("micro_f1", "micro"), ("macro_f1", "macro")])
def test_f1_is_that_of_scikit_learn(name, average):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    true, predicted = rng.random((500, 9)) < 0.2, rng.random((500, 9)) < 0.25
    true[:, 8] = predicted[:, 8] = False  # a label that never occurs
    predicted |= true & (rng.random((500, 9)) < 0.7)
    found = multi_label.measure(name, predicted, true)
    expected = metrics.f1_score(true, predicted, average=average, zero_division=0)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert 0.005 < found.standard_error < 0.03
    assert found == multi_label.measure(name, predicted, true), "the seed is fixed"


def test_accuracy_asks_for_all_labels():
    true = np.array([[1, 1], [1, 0], [0, 1], [1, 0]], bool)
    predicted = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], bool)
    found = multi_label.measure("accuracy", predicted, true)
    assert found.value == 0.75
    assert found.standard_error == pytest.approx(np.sqrt(0.75 * 0.25 / 4))


def test_f1_by_hand():
    true = multi_label.named(KMHAS, ["정치, 욕설", "나이", "문제없음"])
    predicted = multi_label.named(KMHAS, ["정치", "나이, 성별", "글쎄"])
    # 2 hits, 3 answered, 4 true; of nine labels two are found, each always.
    assert multi_label.measure("micro_f1", predicted, true).value == pytest.approx(4 / 7)
    assert multi_label.measure("macro_f1", predicted, true).value == pytest.approx(2 / 9)
