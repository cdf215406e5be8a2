# SPDX-License-Identifier: Apache-2.0
"""Seeds lie inside morphemes, by a count that can be done by hand."""

from __future__ import annotations

import random
from pathlib import Path

from kcmoe.tokenizer import seeds
from kcmoe.tokenizer.normalization import DELIMITER as CUT


def _find(lines: list[str], share: float = 0.5, max_chars: int = 8) -> dict[str, int]:
    return dict(seeds.find(seeds.count_morphemes(lines), lines, share, max_chars))


def test_a_string_that_is_mostly_cut_is_no_seed() -> None:
    # 볼만한 is one morpheme twice, as MeCab reads an unknown run, and cut four times.
    lines = ["볼만한"] * 2 + [f"볼{CUT}만{CUT}한"] * 4 + ["재미"] * 2
    found = _find(lines)
    assert "▁볼만한" not in found
    assert found["▁재미"] == 2
    assert "▁볼만한" in _find(lines, share=0.3)


def test_strings_never_reach_across_a_cut() -> None:
    found = _find([f"영화{CUT}는 재미{CUT}있{CUT}다"] * 5, share=0.0)
    assert set(found) == {"▁영화", "▁영", "영화", "▁재미", "▁재", "재미"}


def test_strings_without_syllables_are_let_through() -> None:
    lines = ["...", "..."] + [f".{CUT}.{CUT}."] * 20
    assert "..." in _find(lines)


def test_rare_and_long_strings_are_left_out() -> None:
    found = _find(["가나다라마", "바사"], max_chars=3)
    assert found == {}
    found = _find(["가나다라마"] * 2, max_chars=3)
    assert max(map(len, found)) == 3


def test_morphemes_are_counted_where_words_begin_and_within() -> None:
    found = seeds.count_morphemes([f"영화{CUT}는 영화", f"재미{CUT}는"])
    assert found == {"▁영화": 2, "는": 2, "▁재미": 1}


def test_the_order_is_coverage_then_text() -> None:
    lines = ["가나"] * 3 + ["다라마"] * 3 + ["나가"] * 3
    found, turned = (
        seeds.find(seeds.count_morphemes(order), order, 0.5, 8) for order in (lines, lines[::-1])
    )
    coverage = [count * len(text) for text, count in found]
    assert coverage == sorted(coverage, reverse=True)
    assert found == turned


def test_counts_agree_with_counting_one_by_one() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choice(f"가나다{CUT}") for _ in range(6)).strip(CUT) for _ in range(300)]
    words = [word.replace(CUT * 2, CUT).replace(CUT * 2, CUT) for word in words]
    found = _find(words, share=0.0)
    for text in ("가나", "▁가나", "나다가", "▁다"):
        expected = sum(
            1
            for word in words
            for part in f"▁{word}".split(CUT)
            for start in range(len(part))
            if part.startswith(text, start)
        )
        assert found.get(text, 0) == (expected if expected >= 2 else 0)
        assert expected >= 2


def test_written_as_sentencepiece_reads_them(tmp_path: Path) -> None:
    seeds.write([("▁가", 3), ("나다", 2)], tmp_path / "s.tsv")
    assert (tmp_path / "s.tsv").read_text(encoding="utf-8") == "▁가\t3\n나다\t2\n"
