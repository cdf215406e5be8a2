# SPDX-License-Identifier: Apache-2.0
"""Inputs of people: what is refused, what is kept as it is, how lines are read."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from kcmoe.errors import UserError
from kcmoe.inference import texts
from kcmoe.tasks.registry import TASKS


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("한 문장", r"not one str; write \[text\]"),
        (b"bytes", "not one bytes"),
        (3, "not one int"),
        (["좋다", None], r"texts\[1\] is None"),
        (["좋다", float("nan")], r"texts\[1\] is nan"),
        ([b"bytes"], r"texts\[0\] is b'bytes'"),
        (["좋다 \ud83d"], r"texts\[0\] has half a surrogate pair at character 3"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        texts.checked(given)


def test_odd_but_valid_texts_pass() -> None:
    odd = ["", " ", "\x00", "🤣" * 3, "ㅋㅋㅋ\u2028ㅎㅎ", "한\u0301"]
    assert texts.checked(iter(odd)) == odd


def test_prompts_of_one_column() -> None:
    (prompt,) = texts.prompts(TASKS["nsmc"], ["{document} 100% <extra_id_0>"])
    assert prompt.endswith("리뷰: {document} 100% <extra_id_0>")


@pytest.mark.parametrize(
    "row",
    [
        ("비가 온다", "맑다"),
        ["비가 온다", "맑다"],
        {"hypothesis": "맑다", "premise": "비가 온다", "x": "y"},
    ],
)
def test_prompts_of_two_columns(row: Any) -> None:
    (prompt,) = texts.prompts(TASKS["kornli"], [row])
    assert prompt.endswith("전제: 비가 온다 가설: 맑다")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("비가 온다", r"texts\[0\] has one text, but kornli needs 2: premise, hypothesis"),
        (("하나", "둘", "셋"), "has 3 texts"),
        ({"premise": "비", "hypothesys": "맑다"}, "no hypothesis.*Did you mean hypothesys"),
        (("비", 3), r"texts\[0\], hypothesis is 3"),
    ],
)
def test_rows_that_do_not_fit_the_task(row: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        texts.prompts(TASKS["kornli"], [row])


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_bytes("\ufeff첫 줄\r\n\n둘\u2028셋\x0b넷\n끝".encode())
    assert texts.read_lines(str(file)) == ["첫 줄", "", "둘\u2028셋\x0b넷", "끝"]
    file.write_bytes(b"")
    assert texts.read_lines(str(file)) == []


def test_lines_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = types.SimpleNamespace(buffer=io.BytesIO("하나\n둘\n".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert texts.read_lines("-") == ["하나", "둘"]
    stdin.buffer = io.BytesIO(bytes(100))
    monkeypatch.setattr(texts, "_MOST_BYTES", 99)  # of /dev/zero a gibibyte is enough
    with pytest.raises(UserError, match=r"standard input has more than .* with --output"):
        texts.read_lines("-")


def test_lines_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    file = tmp_path / "cp949.txt"
    file.write_bytes("좋다\n".encode() + "재미있다\n".encode("cp949") * 7)
    with pytest.raises(UserError, match=r"7 lines not in UTF-8 \(lines 2, 3, 4, 5, 6, …\).*CP949"):
        texts.read_lines(str(file))
    file.write_bytes(b"ok\n\xff\xff\n")
    with pytest.raises(UserError, match=r"1 line not in UTF-8 \(line 2\)$"):
        texts.read_lines(str(file))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        texts.read_lines(str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="cannot be read"):
        texts.read_lines(str(tmp_path))
