# SPDX-License-Identifier: Apache-2.0
"""Files as people have them: read right, or refused in one line that says what to do."""

from __future__ import annotations

import decimal
import encodings.aliases
import io
import json
import unicodedata
import zipfile

import pyarrow as pa
import pyarrow.compute
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from kcmoe.data import tables
from kcmoe.errors import UserError

TEXTS = ['그는 "안녕" 했다', "쉼표, 탭\t줄", "셋째"]


def read(path, columns=("text",), **options):
    tally = tables.Tally()
    chunks = list(tables.read_chunks(str(path), columns, tally=tally, **options))
    found = {c: [v for chunk in chunks for v in chunk[c]] for c in columns}
    return (found[columns[0]] if len(columns) == 1 else found), tally


def written(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def test_a_named_column_of_a_text_file_is_read_or_refused(tmp_path):
    path = written(tmp_path / "ratings.txt", "id\tdocument\tlabel\n1\t재미\t1\n2\t지루\t0\n")
    assert read(path, ("document",))[0] == ["재미", "지루"]
    with pytest.raises(UserError, match="no column body: its first line names id, document, label"):
        read(path, ("body",))
    assert read(written(tmp_path / "one.txt", "document\n재미\n"), ("document",))[0] == ["재미"]
    lines = written(tmp_path / "lines.txt", "첫 줄\n둘째 줄\n")
    assert read(lines)[0] == ["첫 줄", "둘째 줄"]
    with pytest.raises(UserError, match="no column document: it is plain lines"):
        read(lines, ("document",))


def test_two_columns_of_one_name_are_refused_by_every_format(tmp_path):
    paths = [
        written(tmp_path / "a.csv", "text,text\n가,나\n"),
        written(tmp_path / "a.tsv", "text\ttext\n가\t나\n"),
        written(tmp_path / "a.jsonl", '{"text": "가", "text": "나"}\n'),
        tmp_path / "a.parquet",
    ]
    pq.write_table(pa.table([["가"], ["나"]], names=["text", "text"]), paths[-1])
    for path in paths:
        with pytest.raises(UserError, match=r"2 columns called text|has text twice"):
            read(path)


def test_column_names_are_compared_composed(tmp_path):
    split = unicodedata.normalize("NFD", "문장")
    paths = [
        written(tmp_path / "a.csv", f"{split},x\n가,1\n"),
        written(tmp_path / "a.jsonl", json.dumps({split: "가"})),
        tmp_path / "a.parquet",
    ]
    pq.write_table(pa.table({split: ["가"]}), paths[-1])
    for path in paths:
        assert read(path, ("문장",))[0] == ["가"]
        assert read(path, (split,))[0] == ["가"]


def test_missing_values_are_none_in_every_format(tmp_path):
    nan = float("nan")
    pq.write_table(pa.table({"text": pa.array([nan, 1.5, None])}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array([nan, 0.1], pa.float32())}), tmp_path / "b.parquet")
    lines = written(tmp_path / "a.jsonl", '{"text": NaN}\n{"text": 1.5}\n{"text": null}\n')
    assert read(tmp_path / "a.parquet")[0] == read(lines)[0] == [None, 1.5, None]
    assert read(tmp_path / "b.parquet")[0] == [None, 0.1]


@pytest.mark.parametrize(
    "content",
    [
        '\n\n[\n {"text": "가", "labels": {"label": 1}}\n]\n',
        '{"version": "1", "data": [{"text": "가", "labels": {"label": 1}}]}',
        '{\n "version": "1",\n "data": [\n  {"text": "가",\n "labels": {"label": 1}}\n ]\n}\n',
        '{"text": {"0": "가"}, "labels.label": {"0": 1}}',
        '{"columns": ["text", "labels.label"], "index": [0], "data": [["가", 1]]}',
        '{"0": {"text": "가", "labels.label": 1}}',
        '{"text": ["가"], "labels.label": [1]}',
        '{"schema": {"fields": []}, "data": [{"index": 0, "text": "가", "labels.label": 1}]}',
        '{"text": "가", "labels": {"label": 1}}',
        '{"text": "가", "labels.label": 1}\n\n',
        '[\n{"text": "가", "labels.label": 1},\n]\n',
    ],
)
def test_json_as_people_have_it(tmp_path, content):
    rows, _ = read(written(tmp_path / "a.json", content), ("text", "labels.label"))
    assert rows == {"text": ["가"], "labels.label": [1]}


def test_damaged_elements_of_a_json_list_are_named_and_can_be_left_out(tmp_path):
    path = written(
        tmp_path / "a.json",
        b'[\n {"text": "1"},\n {"text": x},\n {"text": "\xff"},\n {"text": "4"}\n]\n',
    )
    with pytest.raises(UserError, match="line 3: not JSON"):
        read(path)
    rows, tally = read(path, strict=False)
    assert rows == ["1", "4"]
    assert sum(tally.dropped.values()) == 2
    for damaged in (
        '[{"text": "가"}',
        '[{"text": "가"}] []',
        "[" * 100_000,
        '{"a":' * 100_000,
        "[1",
    ):
        with pytest.raises(UserError, match=r"a.json"):
            read(written(tmp_path / "a.json", damaged))


def test_a_bad_byte_is_one_row(tmp_path):
    lines = [f"이것은 열한 글자가 넘는 문장 번호 {i} 입니다".encode() for i in range(2000)]
    lines[999] = lines[999][:10] + b"\xff" + lines[999][10:]
    for name, head, place in (
        ("a.txt", b"", 1000),
        ("a.csv", b"text\n", 1001),
        ("a.tsv", b"text\n", 1001),
    ):
        path = written(tmp_path / name, head + b"\n".join(lines))
        with pytest.raises(UserError, match=f"line {place}: byte 0xff is not utf-8 text; mend it"):
            read(path)
        rows, tally = read(path, strict=False)
        assert len(rows) == 1999
        assert tally.summary().startswith("left out 1 x not in the encoding; first at")
        assert f"line {place}" in tally.places[0]


def test_another_encoding_is_recognised(tmp_path):
    path = written(tmp_path / "first.txt", "첫 글자가 알려주지 않는다\n", "cp949")
    for strict in (True, False):
        with pytest.raises(UserError, match=r"It looks like CP949.*TASK_ENCODING = 'cp949'"):
            read(path, strict=strict)
    path = written(tmp_path / "b.txt", "영화가 정말 재미있었어요\n" * 20)
    with pytest.raises(UserError, match="It looks like UTF-8"):
        read(path, encoding="cp949")
    with pytest.raises(UserError, match="give --encoding=utf-8"):
        read(path, encoding="cp949", ways=tables.Ways("", "give --encoding={0}"))


@pytest.mark.parametrize("name", sorted(set(encodings.aliases.aliases.values()) | {"utf_8_sig"}))
def test_every_encoding_works_or_is_refused(tmp_path, name):
    for text in ("영화가 좋다\n둘째\n", "plain\nascii\n"):
        try:
            data = text.encode(name)
        except (LookupError, UnicodeError, TypeError, ValueError):
            continue
        path = written(tmp_path / "a.txt", data)
        if name in ("idna", "punycode", "unicode_escape", "raw_unicode_escape"):
            with pytest.raises(UserError, match="no encoding of text files"):
                read(path, encoding=name)
        else:
            assert read(path, encoding=name)[0] == text.split("\n")[:-1]


@pytest.mark.parametrize(
    ("mark", "name"),
    [("utf-8-sig", "utf-8"), ("utf-16", "utf-8"), ("utf-32", "utf-16"), ("utf-16", "utf-16-le"),
     ("utf-32", "utf-32-le"), ("utf-8-sig", "cp949")],
)  # fmt: skip
def test_a_byte_order_mark_wins(tmp_path, mark, name):
    path = written(tmp_path / "a.csv", "text\n가나\n", mark)
    assert read(path, encoding=name)[0] == ["가나"]


def test_a_quote_that_does_not_close_is_one_row(tmp_path):
    path = written(tmp_path / "a.csv", 'text,n\n"좋다" 라고,1\n"열린 채\n둘,2\n"셋, 째",3\n')
    with pytest.raises(UserError, match="line 2: not CSV"):
        read(path)
    rows, tally = read(path, strict=False)
    assert rows == ["둘", "셋, 째"]
    assert [place.split(":")[0].rpartition(" ")[2] for place in tally.places] == ["2", "3"]
    path = written(tmp_path / "b.csv", 'text\n"닫히지 않은\n둘째\n')
    with pytest.raises(UserError, match=r"b.csv, line 2: not CSV"):
        read(path)
    assert read(path, strict=False)[0] == ["둘째"]
    assert read(written(tmp_path / "c.csv", "text\n가\n\n나\n"))[0] == ["가", "", "나"]


def test_columns_of_a_whole_object_are_compared_composed_and_named_once(tmp_path):
    split = unicodedata.normalize("NFD", "문장")
    frame = written(tmp_path / "a.json", json.dumps({split: {"0": "가"}, "n": {"0": 1}}))
    assert read(frame, ("문장", "n"))[0] == {"문장": ["가"], "n": [1]}
    twice = '{"columns": ["text", "text"], "index": [0], "data": [["가", "나"]]}'
    with pytest.raises(UserError, match="2 columns called text"):
        read(written(tmp_path / "b.json", twice))
    uneven = written(tmp_path / "e.json", '{"n": {"0": 1, "1": 2}, "text": {"0": "가"}}')
    assert read(uneven, ("text", "n"))[0] == {"text": ["가", None], "n": [1, 2]}
    empty = written(tmp_path / "d.json", '{"schema": {"fields": [{"name": "text"}]}, "data": []}')
    assert read(empty)[0] == []
    inner = written(tmp_path / "c.jsonl", '{"labels": {"label": 1}}\n' * 2)
    with pytest.raises(UserError, match=r"column labels holds an object .* as labels\.label\)"):
        read(inner, ("labels",))


def test_a_label_that_many_rows_lack_is_still_a_column(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": "가"}\n' * 1500 + '{"text": "나", "label": 1}\n')
    assert read(path, ("text", "label"))[0]["label"][-1] == 1


def test_decimals_and_run_lengths_are_numbers_and_texts(tmp_path):
    decimals = pa.array([None, decimal.Decimal("1.50"), decimal.Decimal("2.00")])
    texts = pa.compute.run_end_encode(pa.array(["가", "가", "나"]))
    table = pa.table({"score": decimals, "text": texts})
    pa.feather.write_feather(table, tmp_path / "a.feather", compression="uncompressed")
    numbers = pa.table({"text": pa.array([0.1, None], pa.float32()).dictionary_encode()})
    pa.feather.write_feather(numbers, tmp_path / "b.feather")
    assert read(tmp_path / "b.feather")[0] == [0.1, None]
    rows, _ = read(tmp_path / "a.feather", ("score", "text"))
    assert rows == {"score": [None, 1.5, 2.0], "text": ["가", "가", "나"]}


def test_feather_of_the_first_version_is_called_so(tmp_path):
    with pytest.raises(UserError, match="Feather of version 1; write it again with version 2"):
        read(written(tmp_path / "a.feather", b"FEA1" + bytes(60)))


def test_spark_leaves_out_fields_that_are_null(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"n":1}\n{"text":"가"}\n{}\n{"n":2,"text":"나"}\n')
    assert read(path)[0] == [None, "가", None, "나"]
    with pytest.raises(UserError, match=r"no column text\. Its columns: n"):
        read(written(tmp_path / "b.jsonl", '{"n":1}\n{"n":2}\n'))
    with pytest.raises(UserError, match="line 2: no column text"):
        read(written(tmp_path / "c.jsonl", '{"text":"가"}\n{"txt":"나"}\n'))


def test_an_encoding_that_takes_any_bytes_is_not_believed(tmp_path):
    korean = written(tmp_path / "a.csv", "n,text\n1,가나다\n")
    for name in ("latin-1", "cp1252", "mac_roman"):
        with pytest.raises(UserError, match=r"a\.csv is not .* text but utf-8"):
            read(korean, encoding=name)
    assert read(written(tmp_path / "b.csv", "n,text\n1,café\n", "latin-1"), encoding="latin-1")[0]
    for name in ("utf-16-le", "utf-16-be"):
        path = written(tmp_path / "c.csv", "n,text\n1,가\n", name)
        with pytest.raises(UserError, match=f"c.csv is not utf-8 text but {name}"):
            read(path)
        assert read(path, encoding=name)[0] == ["가"]


def test_each_file_may_have_an_encoding_of_its_own(tmp_path):
    encoding = "utf-8, old*.txt=cp949, 새 것.txt=johab"
    for name, codec in (("old 1.txt", "cp949"), ("a.txt", "utf-8"), ("새 것.txt", "johab")):
        assert read(written(tmp_path / name, "가나\n", codec), encoding=encoding)[0] == ["가나"]
    path = written(tmp_path / "b.txt", "가나\n" * 9, "cp949")
    with pytest.raises(
        UserError, match=r"set TASK_ENCODING = 'cp949' \(for this file alone 'b.txt=cp949'"
    ):
        read(path, encoding=encoding)
    with pytest.raises(UserError, match="no encoding is called utf-80"):
        read(path, encoding="b.txt=utf-80,cp949")


def packed(kind, content):
    if kind == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("__MACOSX/._a.csv", "x")
            archive.writestr("a.csv", content)
        return buffer.getvalue()
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("name", ["a.csv.zip", "A.CSV.ZIP", "a.zip", "a.csv.zst", "a.CSV.Zst"])
def test_zip_and_zstd_whatever_the_case(tmp_path, name):
    kind = "zip" if name.lower().endswith("zip") else "zst"
    good = packed(kind, "text\n가\n나\n".encode())
    assert read(written(tmp_path / name, good))[0] == ["가", "나"]
    for end in range(0, len(good), 7):
        with pytest.raises(UserError, match=r"cannot be read|is empty"):
            read(written(tmp_path / name, good[:end]))


def test_a_zip_of_several_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.csv.zip", "w") as archive:
        archive.writestr("a.csv", "text\n가\n")
        archive.writestr("b.csv", "text\n나\n")
    with pytest.raises(UserError, match=r"holds 2 files \(a.csv, b.csv\); unpack it"):
        read(tmp_path / "a.csv.zip")


@pytest.mark.parametrize("name", ["a.feather", "a.ARROW", "a.parquet"])
def test_arrow_files_give_what_parquet_gives(tmp_path, name):
    table = pa.table({"text": [*TEXTS, None], "s": [{"label": i} for i in range(4)]})
    if name == "a.feather":
        pyarrow.feather.write_feather(table, tmp_path / name)
    elif name == "a.ARROW":
        with pa.ipc.new_stream(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, tmp_path / name)
    rows, tally = read(tmp_path / name, ("text", "s.label"))
    assert rows == {"text": [*TEXTS, None], "s.label": [0, 1, 2, 3]}
    assert tally.rows == 4
    with pytest.raises(UserError, match=r"no column texd. Did you mean text"):
        read(tmp_path / name, ("texd",))
    written(tmp_path / name, (tmp_path / name).read_bytes()[:40])
    with pytest.raises(UserError, match="not a readable"):
        read(tmp_path / name)


def test_folders_are_the_files_in_them(tmp_path):
    spark = tmp_path / "out.csv"
    spark.mkdir()
    for name in ("_SUCCESS", ".part-0.crc", "part-1.csv", "part-0.csv"):
        written(spark / name, "text\n가\n")
    assert tables.expand(["out.csv"], tmp_path) == [f"{spark}/part-0.csv", f"{spark}/part-1.csv"]
    saved = tmp_path / "saved"
    saved.mkdir()
    table = pa.table({"text": TEXTS})
    for name in ("data-00000-of-00001.arrow", "cache-1.arrow"):
        with pa.ipc.new_stream(saved / name, table.schema) as writer:
            writer.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    written(saved / "state.json", json.dumps(state))
    written(saved / "dataset_info.json", "{}")
    (found,) = tables.expand(["saved"], tmp_path)
    assert read(found)[0] == TEXTS
    written(saved / "dataset_dict.json", "{}")
    with pytest.raises(UserError, match="several splits; name one"):
        tables.expand(["saved"], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is a folder without files"):
        tables.expand(["empty"], tmp_path)
