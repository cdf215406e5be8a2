# SPDX-License-Identifier: Apache-2.0
"""Every file format gives the same rows; what cannot be read is named or counted."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kcmoe.data import plain_values, table_writing, tables, whole
from kcmoe.errors import UserError


def read(path, columns=("text",), **options):
    tally = tables.Tally()
    chunks = list(tables.read_chunks(str(path), columns, tally=tally, **options))
    return {c: [v for chunk in chunks for v in chunk[c]] for c in columns}, tally


def written(path, content, encoding="utf-8"):
    path.write_bytes(content.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'id\ttext\tlabel\n1\t그는 "안녕" 했다\t0\n2\t\t1\n'),
        ("a.csv", 'id,text,label\n1,"그는 ""안녕"" 했다",0\n2,,1\n'),
        (
            "a.jsonl",
            '{"id": "1", "text": "그는 \\"안녕\\" 했다", "label": "0"}\n\n'
            '{"label": "1", "text": "", "id": "2"}\n',
        ),
        (
            "a.json",
            '[{"id": "1", "text": "그는 \\"안녕\\" 했다", "label": "0"},\n'
            '{"label": "1", "text": "", "id": "2"}]',
        ),
        ("ratings.txt", 'id\ttext\tlabel\r\n1\t그는 "안녕" 했다\t0\r\n2\t\t1\r\n'),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content):
    rows, tally = read(written(tmp_path / name, content), ("text", "label"))
    assert rows == {"text": ['그는 "안녕" 했다', ""], "label": ["0", "1"]}
    assert tally.rows == 2


def test_plain_text_is_one_document_a_line_and_only_newline_ends_it(tmp_path):
    path = written(tmp_path / "a.txt", "\ufeff가\u2028나\x0b다\r\n\n라")
    assert read(path)[0]["text"] == ["가\u2028나\x0b다", "", "라"]
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        file.write("가\n나\n".encode())
    assert read(tmp_path / "a.txt.gz")[0]["text"] == ["가", "나"]


def test_encodings(tmp_path):
    korean = "영화가 정말 재미있었어요\n" * 50
    path = written(tmp_path / "a.txt", korean, "cp949")
    with pytest.raises(UserError, match=r"CP949.*TASK_ENCODING = 'cp949' \(for this file"):
        read(path)
    assert len(read(path, encoding="cp949")[0]["text"]) == 50
    assert len(read(written(tmp_path / "b.txt", korean, "utf-16"))[0]["text"]) == 50
    with pytest.raises(UserError, match="no encoding is called utf-80"):
        read(path, encoding="utf-80")


def test_a_bad_byte_in_utf8_is_not_called_cp949(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(("영화가 정말 재미있었어요\n" * 50).encode() + b"\xff\n")
    with pytest.raises(
        UserError, match=r"line 51: byte 0xff is not utf-8 text; mend it, set TASK_E"
    ):
        read(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize(("content", "what"), [("", "is empty"), ("\n가\n", "has a blank first")])
def test_a_table_without_a_header_is_called_so(tmp_path, name, content, what):
    with pytest.raises(
        UserError, match=f"{name} {what}.*leave it out, or .* header that names text"
    ):
        read(written(tmp_path / name, content))


def test_the_caller_says_how_bad_rows_are_left_out(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": "가"}\n{\n')
    with pytest.raises(
        UserError, match=r"line 2: not JSON .*; mend it, or set DATA_STRICT = False"
    ):
        read(path)
    with pytest.raises(UserError, match=r"; mend it, or give --lenient to leave such places out"):
        read(path, ways=tables.Ways("give --lenient"))
    with pytest.raises(UserError, match=r"line 2: not JSON \(.*\)$"):
        read(path, ways=tables.Ways("", ""))


@pytest.mark.parametrize(
    ("name", "content", "reason", "good"),
    [
        ("a.tsv", "text\tlabel\n가\t1\n나\n다\t0\n", "wrong number of cells", ["가", "다"]),
        ("a.jsonl", '{"text": "가"}\n{"text": \n{"text": "다"}\n', "not JSON", ["가", "다"]),
        ("a.jsonl", '{"text": "가"}\n[1]\n{"text": "다"}\n', "not a JSON object", ["가", "다"]),
        ("a.jsonl", '{"text": "가"}\n{"txt": "나"}\n', "no column text", ["가"]),
        ("a.jsonl", '{"text": "가"}\n{"text": "\\ud800"}\n', "half a surrogate pair", ["가"]),
        ("a.jsonl", '{"text": "가"}\n{"text": ["나"]}\n', "column text holds a list", ["가"]),
    ],
)
def test_bad_rows_stop_or_are_counted(tmp_path, name, content, reason, good):
    path = written(tmp_path / name, content)
    with pytest.raises(UserError, match=f"{name}, line [23]: {reason}"):
        read(path)
    rows, tally = read(path, strict=False)
    assert rows["text"] == good
    assert sum(tally.dropped.values()) == 1
    assert reason in tally.summary()


@pytest.mark.parametrize(
    ("name", "content"), [("a.tsv", "Text\tlabel\n가\t1\n"), ("a.jsonl", '{"Text": "가"}\n')]
)
def test_a_renamed_column_is_named(tmp_path, name, content):
    with pytest.raises(UserError, match=r"no column text. Did you mean Text"):
        read(written(tmp_path / name, content))


def parquet_file(path, groups=3, rows=100):
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for group in range(groups):
            texts = [f"{group} 번째 묶음의 {row} 번째 댓글" for row in range(rows)]
            writer.write_table(pa.table({"text": texts, "label": list(range(rows))}, schema=schema))
    return path


def damage_group(path, group):
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(0)
    middle = chunk.data_page_offset + chunk.total_compressed_size // 3
    data = bytearray(path.read_bytes())
    data[middle : middle + 16] = bytes(b ^ 0x5A for b in data[middle : middle + 16])
    path.write_bytes(data)


def test_a_damaged_row_group_is_named_and_can_be_left_out(tmp_path):
    path = parquet_file(tmp_path / "a.parquet")
    damage_group(path, 1)
    with pytest.raises(UserError, match=r"a.parquet, row group 1 is damaged.*DATA_STRICT"):
        read(path)
    rows, tally = read(path, strict=False)
    assert [t[0] for t in rows["text"][::100]] == ["0", "2"]
    assert tally.dropped == {"damaged row group": 100}
    assert "row group 1" in tally.places[0]


def test_parquet_mistakes(tmp_path):
    path = parquet_file(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column txt. Did you mean text"):
        read(path, ("txt",))
    (tmp_path / "b.parquet").write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"b.parquet is not a readable parquet file"):
        read(tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": [["가"], ["나"]]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="column text is list"):
        read(tmp_path / "c.parquet")


@pytest.mark.slow
def test_hundreds_of_mutated_files_never_do_worse_than_a_message(tmp_path):
    """Every flipped byte either gives the right rows or a `UserError`: nothing else, never wrong text."""
    import random

    good = parquet_file(tmp_path / "good.parquet").read_bytes()
    right = read(tmp_path / "good.parquet")[0]["text"]
    generator = random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(generator.choice([1, 1, 2, 8])):
            data[generator.randrange(len(data))] = generator.randrange(256)
        if generator.random() < 0.2:
            del data[generator.randrange(len(data)) :]
        path = tmp_path / "bad.parquet"
        path.write_bytes(data)
        try:
            rows = read(path)[0]["text"]
        except UserError:
            refused += 1
        else:
            assert rows == right
    assert refused > 100


def test_files_are_found_in_order_and_absence_is_explained(tmp_path):
    for name in ("b-1.txt", "b-0.txt", "a.txt"):
        (tmp_path / name).write_text("가\n", encoding="utf-8")
    found = tables.expand(["b-*.txt", "a.txt"], tmp_path)
    assert [f.rsplit("/", 1)[1] for f in found] == ["b-0.txt", "b-1.txt", "a.txt"]
    with pytest.raises(UserError, match=r"no file matches .*c.txt. Did you mean a.txt"):
        tables.expand(["c.txt"], tmp_path)
    with pytest.raises(UserError, match=r"there is no folder .*/x\. Is DATA_DIR right"):
        tables.expand(["x/*.txt"], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no file matches .*/empty/\*.txt\. Is DATA_DIR right"):
        tables.expand(["empty/*.txt"], tmp_path)
    with pytest.raises(UserError) as absent:  # says nothing of a DATA_DIR that nobody gave
        tables.expand([str(tmp_path / "empty" / "a.txt")])
    assert str(absent.value) == f"no file matches {tmp_path}/empty/a.txt."
    with pytest.raises(UserError, match="not read"):
        tables.format_of("a.xlsx")


def test_buckets_are_read_through_fsspec(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/b.parquet", parquet_file(tmp_path / "a.parquet").read_bytes())
    memory.pipe("/corpus/a.txt", "가\n나\n".encode())
    files = tables.expand(["memory://corpus/*"])
    assert [f.rsplit("/", 1)[1] for f in files] == ["a.txt", "b.parquet"]
    assert read(files[0])[0]["text"] == ["가", "나"]
    assert len(read(files[1])[0]["text"]) == 300
    with pytest.raises(UserError, match=r"^no file matches memory://corpus/c\*\.$"):
        tables.expand(["memory://corpus/c*"])
    with pytest.raises(
        UserError, match=r"^no file matches memory://corpus/c\*\. Is DATA_DIR right"
    ):
        tables.expand(["c*"], "memory://corpus")


NS = pa.timestamp("ns")
NEAR, FAR = "1970-01-01 00:00:00.000000001", 10**15


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array([1, 2], NS).dictionary_encode(), NEAR),
        (pa.array([[1, None], [2]], pa.list_(NS)), [NEAR, None]),
        (pa.array([[1, 1], None], pa.list_(NS, 2)), [NEAR, NEAR]),
        (pa.array([{"a": 1}, None], pa.struct([("a", NS)])), {"a": NEAR}),
        (pa.array([[("k", 1)], []], pa.map_(pa.string(), NS)), [["k", NEAR]]),
        (pc.run_end_encode(pa.array([1, 2], NS)), NEAR),
        (pa.array([(1, 2, 3), None], pa.month_day_nano_interval()), "P1M2DT0.000000003S"),
        (pa.array([[(1, 2, 0)], []], pa.list_(pa.month_day_nano_interval())), ["P1M2DT0S"]),
        (pa.array([FAR, 1], pa.timestamp("s")), "31690708-07-05 01:46:40"),
        (pa.array([FAR, 1], pa.timestamp("s", "+09:00")), "31690708-07-05 01:46:40+0000"),
        (pa.array([1, 2], pa.timestamp("ns", "No/Where")), f"{NEAR}+0000"),
        (pa.array([0.1, None], pa.float32()), 0.1),
        (pa.array([[0.1], None], pa.list_(pa.float32())), [0.1]),
        (pa.array([float("nan"), 0.1], pa.float32()), None),
    ],
    ids=lambda given: str(given.type) if isinstance(given, pa.Array) else "",
)
def test_every_column_has_values_to_write_wherever_it_is_cut(column, wanted):
    more = pa.concat_arrays([column.slice(1), column, column.slice(1)])
    others = plain_values.values(column.slice(1))
    assert plain_values.values(column)[0] == wanted
    assert plain_values.values(more.slice(1, 2)) == [wanted, *others]
    json.dumps(plain_values.values(more), allow_nan=False)


def test_what_parquet_has_no_type_for_is_text_and_runs_are_undone(tmp_path):
    kinds = {
        "runs": pc.run_end_encode(pa.array(["가", "가", "나"])),
        "span": pa.array([(1, 2, 0), None, (0, 0, 0)], pa.month_day_nano_interval()),
        "time": pa.array([1, None, 2], NS),
        "text": pa.array(["a", "b", "c"]),
    }
    table, source = pa.table(kinds), str(tmp_path / "in.arrow")
    with pa.OSFile(source, "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table)
    about = whole.look_at(source, "utf-8", ["text"])
    path = str(tmp_path / "out.parquet")
    written = table_writing.writer(path, ".parquet", about, about.names, {"label": "text"}, {}, {})
    for chunk in whole.read(about, ["text"], "utf-8", True, tables.Tally()):
        written.write(chunk, {"label": ["x"] * chunk.count})
    written.close()
    found = pq.read_table(path)
    assert found["runs"].to_pylist() == ["가", "가", "나"]
    assert found["span"].to_pylist() == ["P1M2DT0S", None, "P0M0DT0S"]
    assert found["time"].combine_chunks() == kinds["time"]


def test_what_is_missing_is_missing_in_a_column_that_becomes_text():
    found = table_writing.array(["a", 1.5, float("nan"), None], pa.string())
    assert found.to_pylist() == ["a", "1.5", None, None]
