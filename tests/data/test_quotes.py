# SPDX-License-Identifier: Apache-2.0
"""Quotes and line ends of tables: those of the program that wrote the file are taken off, others are text."""

from __future__ import annotations

import csv

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kcmoe.data import table_writing, tables, whole
from kcmoe.errors import UserError


def read(path, **options):
    return [
        text
        for chunk in tables.read_chunks(str(path), ["text"], **options)
        for text in chunk["text"]
    ]


def written(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def test_tsv_with_the_quotes_of_pandas_is_understood_and_other_quotes_are_text(tmp_path):
    path = written(
        tmp_path / "a.tsv", 'n\ttext\n0\t첫째\n1\t"그는 ""안녕"" 했다"\n2\t"탭\t과\n줄"\n'
    )
    assert read(path) == ["첫째", '그는 "안녕" 했다', "탭\t과\n줄"]
    # NSMC is published so and has always been read so.
    nsmc = written(tmp_path / "a.txt", 'n\ttext\n1\t"그는 ""안녕"" 했다"\n')
    assert read(nsmc) == ['"그는 ""안녕"" 했다"']
    assert read(written(tmp_path / "b.tsv", nsmc.read_bytes()), quotes=False) == read(nsmc)
    for kept in ('그는 "안녕" 했다', '"모두 인용이다"', '"', '"""재미"""없다'):
        path = written(tmp_path / "b.tsv", f'n\ttext\n1\t"a ""b"""\n2\t{kept}\n3\t평범\n')
        assert read(path) == ['"a ""b"""', kept, "평범"]
    # Polars writes an empty text so; DuckDB quotes # and blanks at the ends.
    path = written(tmp_path / "c.tsv", 'n\ttext\n1\t"a ""b"""\n2\t""\n3\t"#가"\n4\t" 나 "\n')
    assert read(path) == ['a "b"', "", "#가", " 나 "]
    # Arrow and R quote names and texts, but no numbers.
    path = written(tmp_path / "d.tsv", '"n"\t"text"\n1\t"모두 인용이다"\n2\t"탭\t과 ""인용"""\n')
    assert read(path) == ["모두 인용이다", '탭\t과 "인용"']


TEXTS = ["재미 있다", "그냥", "ok", 'say "hi"', "탭\t둘", "", "#해시", "it's", "1.5", "둘\n줄"]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_every_rule_of_quoting_is_understood(tmp_path, quoting):
    path = tmp_path / "a.tsv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=quoting)
        file.write("n\ttext\n")  # as a header that another hand wrote
        writer.writerows(enumerate(TEXTS))
    assert read(path) == TEXTS


def test_what_duckdb_and_sqlite_quote_is_understood(tmp_path):
    # DuckDB: a # anywhere. sqlite3: all but plain ASCII without blanks, and empty texts.
    duck = written(tmp_path / "duck.tsv", 'n\ttext\n1\t"c# 좋다"\n2\t그냥\n3\t"a ""b"""\n')
    assert read(duck) == ["c# 좋다", "그냥", 'a "b"']
    rows = "".join(
        f"{n}\t{text}\n"
        for n, text in enumerate(['"재미 있다"', "ok", '"say ""hi"""', '""', "1.5", ""])
    )
    assert read(written(tmp_path / "lite.tsv", f"n\ttext\n{rows}")) == [
        "재미 있다", "ok", 'say "hi"', "", "1.5", "",
    ]  # fmt: skip
    # One text that sqlite would have quoted and that is not: the quotes are somebody's.
    kept = read(written(tmp_path / "none.tsv", f"n\ttext\n{rows}9\t그냥 글\n"))
    assert kept[0] == '"재미 있다"'


def test_spark_is_told_how_to_write(tmp_path):
    sparks = 'n\ttext\n1\t"그가 \\"네\\" 했다"\n2\t그냥\n'
    with pytest.raises(
        UserError, match=r"a.tsv: a quote in a cell is written \"\", not .*Spark.*escape"
    ):
        read(written(tmp_path / "a.tsv", sparks))
    assert read(written(tmp_path / "a.txt", sparks))[0] == '"그가 \\"네\\" 했다"'
    # A cell may end in a backslash, and have one before a quote.
    ends = written(tmp_path / "b.csv", 'n,text\n1,"가, \\"\n2,"나\\""다"\n')
    assert read(ends) == ["가, \\", '나\\"다']
    for row in ('그가 \\"네\\" 했다', '"그가 \\"네\\" 했다"', '"아, \\", 네"'):
        with pytest.raises(UserError, match=r"line 2: not CSV \(a quote in a cell .* Spark does"):
            read(written(tmp_path / "a.csv", f"n,text\n1,{row}\n"))


def test_lone_quotes_swallow_no_rows(tmp_path):
    rows = 'text\tlabel\n좋다\ta\n"진짜 재밌다고\ta\n그저 그렇다\tb\n최고라더라"\tb\n끝\ta\n'
    path = written(tmp_path / "a.tsv", rows)
    with pytest.raises(
        UserError, match=r"a\.tsv, line 3: a quote opens here .* call the file \.txt"
    ):
        read(path)
    assert len(read(written(tmp_path / "a.txt", rows))) == 5
    # Another cell shows that quotes are a program's.
    both = written(tmp_path / "b.tsv", 'text\tlabel\n"a ""b"""\tx\n"탭\t과\n줄"\ty\n')
    assert read(both) == ['a "b"', "탭\t과\n줄"]
    assert read(written(tmp_path / "c.tsv", 'n\ttext\n1\t"두\n줄"\n')) == ["두\n줄"]


def test_a_carriage_return_inside_a_row_is_text(tmp_path):
    content = 'n,text\r\n1,가\r나\r\n2,"다\r\n라"\r\n'
    assert read(written(tmp_path / "a.csv", content)) == ["가\r나", "다\r\n라"]
    # Only where nothing else ends lines.
    assert read(written(tmp_path / "mac.csv", "n,text\r1,가\r2,나")) == ["가", "나"]
    assert read(written(tmp_path / "mac.txt", "가\r나\r", "utf-16")) == ["가", "나"]
    late = "가\r나" * 40_000 + "\n다\n"
    assert read(written(tmp_path / "late.txt", late)) == ["가\r나" * 40_000, "다"]
    for content, said in (
        ('n,t\r1,"가\n나"\r', "end in carriage returns"),
        ("sep=,\nn,text\n", "only Excel"),
    ):
        with pytest.raises(UserError, match=rf"a.csv has no column text.*{said}"):
            read(written(tmp_path / "a.csv", content))
    with pytest.raises(UserError, match=r"a.csv has tabs, not commas.*call it .tsv"):
        read(written(tmp_path / "a.csv", "n\ttext\n1\t가\n"))
    with pytest.raises(UserError, match=r"a.csv has no column text.*It seems to have semicolons"):
        read(written(tmp_path / "a.csv", "n;text\n1;가\n"))


@pytest.mark.parametrize("name", ["out.csv", "out.tsv"])
def test_what_is_written_is_read_by_others(tmp_path, name):
    source = tmp_path / "in.parquet"
    texts = [*TEXTS, "캐리지\r리턴", "\r", "둘\r\n다", None, "끝"]
    pq.write_table(pa.table({"text": texts, "n": list(range(len(texts)))}), source)
    about = whole.look_at(str(source), "utf-8", ["text"])
    out = table_writing.writer(
        str(tmp_path / name), name[3:], about, about.names, {"label": "text"}, {}, {}
    )
    for chunk in whole.read(about, ["text"], "utf-8", True, tables.Tally()):
        out.write(chunk, {"label": ["긍정"] * chunk.count})
    out.close()
    with (tmp_path / name).open(newline="", encoding="utf-8") as file:
        found = list(csv.reader(file, delimiter="," if name == "out.csv" else "\t"))
    wanted = [[text or "", str(n), "긍정"] for n, text in enumerate(texts)]
    assert found == [["text", "n", "label"], *wanted]
    assert read(tmp_path / name) == [text or "" for text in texts]
