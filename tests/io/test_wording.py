# SPDX-License-Identifier: Apache-2.0
"""Sizes, tables and errors as a person reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcmoe.io import wording

ROWS = [("name", "count", "share"), ("nsmc", "49,997", "1.00"), ("klue", "3", "0.25")]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (57.7e6, "57.7 MB"),
        (3e12, "3000.0 GB"),
    ],
)
def test_sizes(size: float, text: str) -> None:
    assert wording.human_bytes(size) == text


def test_an_error_without_its_number(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Errno") as caught:
        (tmp_path / "none").read_bytes()
    assert wording.first_line(caught.value) == f"No such file or directory: '{tmp_path}/none'"
    assert wording.first_line(ValueError("a\nb")) == "a"


def test_a_long_value_is_cut() -> None:
    assert wording.shown("가") == "'가'"
    assert len(wording.shown("가" * 3000)) < 170 and "more characters" in wording.shown(["a"] * 999)


def test_memory() -> None:
    assert wording.gibibytes(15.75 * 2**30) == "15.75 GiB"


def test_columns_are_aligned_as_asked() -> None:
    assert wording.aligned(ROWS) == [
        "name   count  share",
        "nsmc  49,997   1.00",
        "klue       3   0.25",
    ]
    assert wording.aligned(ROWS, "><")[2] == "klue  3       0.25"
    assert wording.aligned([]) == []
    with pytest.raises(ValueError, match="zip"):
        wording.aligned([("a", "b"), ("a",)])


def test_a_markdown_table() -> None:
    assert wording.markdown(ROWS) == [
        "| name |  count | share |",
        "| ---- | -----: | ----: |",
        "| nsmc | 49,997 |  1.00 |",
        "| klue |      3 |  0.25 |",
    ]


def test_of_an_error_the_part_that_helps() -> None:
    error = ValueError("NOT_FOUND: no file [source locations='a.cc:1'\nmore]\nrest")
    assert wording.first_line(error) == "NOT_FOUND: no file"
    assert wording.first_line(KeyError()) == "KeyError"
    assert len(wording.first_line(ValueError("x" * 999))) == 300


def test_long_lists_and_texts_are_cut() -> None:
    assert wording.listed(["a", "b"]) == "a, b"
    assert wording.listed([str(n) for n in range(1000)], 3) == "0, 1, 2 and 997 more"
    cut = wording.shortened("a" * 90_000 + "b" * 90_000, 3000)
    assert cut.startswith("a" * 2000)
    assert cut.endswith("b" * 1000)
    assert "(177,000 more characters)" in cut
