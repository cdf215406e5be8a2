# SPDX-License-Identifier: Apache-2.0
"""Lines of any corpus, cut and sampled fairly, and the faults of a corpus named."""

from __future__ import annotations

import collections
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kcmoe.data import tables
from kcmoe.errors import UserError
from kcmoe.tokenizer import corpus


def _parquet(path: Path, texts: list[str | None]) -> str:
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)
    return str(path)


def test_every_line_has_the_same_chance() -> None:
    counts: collections.Counter[str] = collections.Counter()
    source = [str(number) for number in range(40)]
    for seed in range(3000):
        sample, seen = corpus.reservoir(source, 10, seed)
        assert (len(set(sample)), seen) == (10, 40)
        counts.update(sample)
    # 750 expected, standard deviation 24; the ends are where an off-by-one would show.
    assert all(630 < counts[line] < 870 for line in source)


def test_a_sample_is_seeded_and_in_order() -> None:
    source = [f"{number:05}" for number in range(10_000)]
    first, second = (corpus.reservoir(iter(source), 100, seed=3)[0] for _ in range(2))
    assert first == second == sorted(first)
    assert first != corpus.reservoir(source, 100, seed=4)[0]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_small_corpus_is_taken_whole(count: int) -> None:
    source = [str(number) for number in range(count)]
    assert corpus.reservoir(source, 5, seed=0) == (source, count)


def test_long_lines_are_cut_at_spaces_and_lose_nothing() -> None:
    line = "가나다 라마바사 " * 1000 + "아" * 100
    parts = list(corpus.cut(line, 32))
    assert max(map(len, parts)) <= 32
    assert "".join("".join(parts).split()) == "".join(line.split())
    assert all(not part.startswith(" ") for part in parts)
    assert list(corpus.cut("", 32)) == []
    assert list(corpus.cut("가나", 2)) == ["가나"]


def test_lines_are_clean_whatever_the_rows_hold(tmp_path: Path) -> None:
    rows = ["좋아요", None, "", " \n ", "가\x00나\ufdd0다", "줄\n바꿈", "긴" * 2_000_000]
    tally = tables.Tally()
    path = _parquet(tmp_path / "a.parquet", rows)
    found = list(corpus.lines([path], "text", 1000, tally=tally))
    assert found[:3] == ["좋아요", "가나다", "줄 바꿈"]
    assert len(found) == 3 + 2000
    assert tally.nulls == 1


def test_text_and_gzip_read_like_parquet(tmp_path: Path) -> None:
    import gzip

    plain = tmp_path / "a.txt"
    plain.write_text("하나\n둘 셋\n", encoding="utf-8")
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(corpus.lines([str(plain)], "text", 100)) == ["하나", "둘 셋"]
    assert list(corpus.lines([str(packed)], "text", 100)) == ["하나", "둘 셋"]
    assert corpus.measure([str(plain), str(packed)], "text").files == 2


def test_an_unreadable_file_among_many_is_named_before_the_work(tmp_path: Path) -> None:
    paths = [_parquet(tmp_path / f"{number}.parquet", ["가"]) for number in range(3)]
    Path(paths[1]).write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"1\.parquet"):
        corpus.measure(paths, "text")


def test_a_missing_column_is_named_with_those_there(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", ["가"])
    with pytest.raises(UserError, match=r"no column txt.*Did you mean text"):
        corpus.measure([path], "txt")


def test_sizes_come_from_footers(tmp_path: Path) -> None:
    paths = [
        _parquet(tmp_path / f"{number}.parquet", [f"줄 {i}" for i in range(50)]) for number in "ab"
    ]
    size = corpus.measure(paths, "text")
    assert (size.files, size.lines) == (2, 100)
    assert size.text_bytes > 100


def test_nothing_to_learn_from() -> None:
    with pytest.raises(UserError, match=r"the corpus is empty.*TOKENIZER_TEXT_COLUMN"):
        corpus.require_text([], ["a.parquet"])
