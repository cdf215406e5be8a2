# SPDX-License-Identifier: Apache-2.0
"""The bundled Korean samples: as many as promised, no line twice, nothing of validation in training."""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter

import pytest

from kcmoe.io import resources


def read(name: str) -> list[str]:
    return resources.find(f"kcmoe/samples/{name}").read_text(encoding="utf-8").splitlines()


def rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(read(name), delimiter="\t", quoting=csv.QUOTE_NONE))


def test_comments() -> None:
    lines = read("comments.txt")
    assert len(lines) >= 1500
    assert len(set(lines)) == len(lines)
    assert all(line == line.strip() != "" for line in lines)
    assert all(line == unicodedata.normalize("NFC", line) for line in lines)


@pytest.mark.parametrize(
    ("kind", "train", "validation", "labels"), [("reviews", 600, 200, 2), ("nli", 300, 100, 3)]
)
def test_labelled_sets(kind: str, train: int, validation: int, labels: int) -> None:
    learnt, held_out = rows(f"{kind}_train.tsv"), rows(f"{kind}_validation.tsv")
    assert len(learnt) >= train
    assert len(held_out) >= validation
    for part in (learnt, held_out):
        counts = Counter(row["label"] for row in part)
        assert len(counts) == labels
        assert min(counts.values()) > len(part) / labels / 2  # no label is rare
        assert all(all(value.strip() for value in row.values()) for row in part)

    def texts(part: list[dict[str, str]]) -> list[tuple[str, ...]]:
        return [tuple(value for name, value in row.items() if name != "label") for row in part]

    assert len(set(texts(learnt))) == len(learnt)
    assert not set(texts(learnt)) & set(texts(held_out))
