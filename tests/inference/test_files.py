# SPDX-License-Identifier: Apache-2.0
"""`kcmoe predict FILE --output=OUT`: every format, every kind of answer, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kcmoe.inference.predict import LanguageModel

TEXTS = ['정말 "재미" 있다', "별로, 두 번은 못 본다", "배우 연기 좋다 " * 4, "<extra_id_0>\t최악"]
ALIKE = ["재미 있다", "별로 다", "재미 없다"]  # of one length in tokens, so one program is compiled

Predict = Callable[..., tuple[int, str, str]]


def test_answers_are_those_of_the_model(
    predict_file: Predict, rows: ModuleType, model: LanguageModel
) -> None:
    rows.write("in.txt", ALIKE)
    assert predict_file("in.txt", "--output=out.jsonl")[0] == 0
    wanted = [one.as_json() for one in model.classify(ALIKE, task="nsmc")]
    assert list(rows.records("out.jsonl")) == [
        {"text": text, **each} for text, each in zip(ALIKE, wanted, strict=True)
    ]


@pytest.mark.usefixtures("fake_answers")
@pytest.mark.parametrize("given", ["in.csv", "in.tsv", "in.jsonl.gz", "in.parquet", "in.txt"])
@pytest.mark.parametrize("out", ["out.csv", "out.tsv", "out.jsonl", "out.parquet", "out.txt"])
def test_all_columns_and_then_the_answers(
    predict_file: Predict, rows: ModuleType, model: LanguageModel, given: str, out: str
) -> None:
    rows.write(given, TEXTS)
    status, said, _ = predict_file(given, f"--output={out}")
    assert status == 0
    assert said.startswith(f"{out}: 4 lines in ")
    assert os.listdir() == [given, out] or os.listdir() == [out, given], "nothing else is left"
    text = "text" if given == "in.txt" else "document"
    texts = [t.replace("\t", " ") for t in TEXTS] if "in.txt" in given else TEXTS
    found = list(rows.records(out))
    for row, wanted, each in zip(found, model.classify(texts, task="nsmc"), texts, strict=True):
        assert row[text] == (each.replace("\t", " ") if out == "out.txt" else each)
        assert row["label"] == wanted.label
        if out == "out.jsonl":
            assert row["probabilities"] == wanted.as_json()["probabilities"]
        else:
            assert float(row["probability_긍정적"]) == round(wanted.probabilities["긍정적"], 6)
    if text == "document":
        assert [int(row["id"]) for row in found] == [0, 1, 2, 3]


@pytest.mark.usefixtures("fake_answers")
def test_columns_of_other_tasks_and_names_that_are_taken(
    predict_file: Predict, rows: ModuleType
) -> None:
    pairs = [
        {"a": "비가 온다", "b": "날이 맑다", "score": 3.2},
        {"a": None, "b": "맑다", "score": 1},
    ]
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in pairs), "utf-8")
    asked = ("pairs.jsonl", "--columns=a,b")
    assert predict_file(*asked, "--output=nli.jsonl", task="kornli")[0] == 0
    assert set(next(rows.records("nli.jsonl"))["probabilities"]) == {"함의", "중립", "모순"}
    assert predict_file(*asked, "--output=sts.parquet", task="korsts")[0] == 0
    first, second = rows.records("sts.parquet")
    assert first["score"] == 3.2 and 0 <= first["predicted_score"] <= 5
    assert second["predicted_score"] is None
    assert predict_file("sts.parquet", "--columns=b", "--output=kinds.csv", task="kmhas")[0] == 0
    assert [*next(rows.records("kinds.csv"))][4:7] == [
        "label",
        "probability_출신",
        "probability_외모",
    ]
    status, _, err = predict_file("pairs.jsonl", "--output=x.csv", task="kornli")
    assert status == 2
    assert (
        "no column premise, but a, b, score; say which are premise, hypothesis: --columns=" in err
    )
    Path("pairs.tsv").write_text("비가 온다\t날이 맑다\n", "utf-8")
    status, _, err = predict_file("pairs.tsv", "--output=x.csv", task="kornli")
    assert (status, "if it is a row, put a line with names above it" in err) == (2, True)


@pytest.mark.usefixtures("fake_answers")
def test_generated_text(predict_file: Predict, rows: ModuleType, model: LanguageModel) -> None:
    Path("gaps.txt").write_text("오늘 <extra_id_0> 좋다\n\n", "utf-8")
    assert predict_file("gaps.txt", "--output=out.jsonl", "--beam_size=3", task="generate")[0] == 0
    (ids,) = model.encode(["오늘 <extra_id_0> 좋다"], sentinels=True)
    assert [row["generated"] for row in rows.records("out.jsonl")] == [f"3 {len(ids)}", None]
    Path("gaps.txt").write_text("오늘\n<extra_id_777> 좋다\n", "utf-8")
    status, _, err = predict_file("gaps.txt", "--output=new.jsonl", task="generate")
    assert (status, os.path.exists("new.jsonl.part")) == (2, False)
    assert "gaps.txt, row 2: there is no <extra_id_777>" in err


@pytest.mark.usefixtures("fake_answers")
def test_a_task_of_free_text_is_generated(predict_file: Predict, rows: ModuleType) -> None:
    lines = (
        "MIXTURE_OR_TASK_NAME = 'mine'",
        "TASK_TRAIN_FILES = 'x.csv'",
        "TASK_PROMPT = '질문: {q}'",
        "TASK_TARGET_COLUMN = 'a'",
    )
    Path("mine.gin").write_text("\n".join(lines), "utf-8")
    Path("in.txt").write_text("점심 뭐 먹지?\n", "utf-8")
    status, _, err = predict_file(
        "in.txt", "--output=out.jsonl", "--gin_file=mine.gin", task="mine"
    )
    assert status == 0, err
    assert [list(row) for row in rows.records("out.jsonl")] == [["text", "generated"]]


@pytest.mark.usefixtures("fake_answers")
def test_rows_without_text_and_very_long_ones(predict_file: Predict, rows: ModuleType) -> None:
    rows.write("in.csv", ["좋다", "", "가나다 " * 2_500_000, "  ", "별로"])
    status, said, _ = predict_file("in.csv", "--output=out.csv")
    assert status == 0
    assert "2 without text, whose answers are empty; 1 longer than the model reads" in said
    labels = [row["label"] for row in rows.records("out.csv")]
    assert [bool(label) for label in labels] == [True, False, True, False, True]


@pytest.mark.usefixtures("fake_answers")
@pytest.mark.parametrize("name", ["in.csv", "in.txt", "in.jsonl", "in.parquet"])
def test_no_rows(predict_file: Predict, rows: ModuleType, name: str) -> None:
    rows.write(name, [])
    if name == "in.parquet":
        pq.write_table(pa.table({"document": pa.array([], pa.string())}), name)
    assert predict_file(name, "--output=out.csv")[0] == 0
    assert list(rows.records("out.csv")) == []


def cut(path: str, size: int) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:size])


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("in.csv", -2, "not CSV"),
        ("in.jsonl", -3, "not JSON"),
        ("in.jsonl.gz", -12, "cannot be read"),
        ("in.parquet", -40, "not a readable parquet file"),
        ("in.txt", -2, "is not utf-8 text"),
    ],
)
def test_a_file_cut_anywhere_is_said_before_anything_is_computed(
    predict_file: Predict, rows: ModuleType, name: str, size: int, said: str
) -> None:
    rows.write(name, ["좋다", "나쁘다", '그저 "그렇다'])
    cut(name, size)
    status, out, err = predict_file(name, "--output=out.csv")
    assert (status, out, os.listdir()) == (2, "", [name])
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in.csv", "--output=out.xml"], "the ending says what is written"),
        (["in.csv", "--output=in.csv/out.csv"], "is a file where a folder is needed"),
        (["in.csv", "--output=out.csv.gz"], "the ending says what is written"),
        (["in.csv", "--output=in.csv", "--overwrite"], "is the input itself"),
        (["in.csv", "--output=gs://b/out.csv"], "is not on this machine"),
        (["none.csv", "--output=out.csv"], "none.csv"),
        (["in.csv", "--columns=documnt", "--output=out.csv"], "Did you mean document?"),
        (["in.csv", "--columns=a,b", "--output=out.csv"], "--columns names 2, but nsmc reads 1"),
        (["in.csv", "--columns=", "--output=out.csv"], "names no column in one place"),
        (["in.csv", "--columns=a,a", "--output=out.csv"], "names a twice"),
        (["in.csv", "--encoding=utf-16", "--output=out.csv"], "UTF-8; give --encoding=utf-8"),
        (["--output=out.csv"], "--output needs a FILE"),
        (["in.csv", "--lenient"], "--lenient is for a file with --output"),
    ],
)
def test_mistakes(predict_file: Predict, rows: ModuleType, arguments: list[str], said: str) -> None:
    rows.write("in.csv", TEXTS)
    status, out, err = predict_file(*arguments)
    assert (status, out, os.listdir()) == (2, "", ["in.csv"])
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("fake_answers")
def test_lenient_leaves_damaged_places_out(predict_file: Predict, rows: ModuleType) -> None:
    rows.write("in.jsonl", ["좋다", "나쁘다"])
    with open("in.jsonl", "a", encoding="utf-8") as file:
        file.write('{"id": 2, "docu\n{"id": 3, "document": "글쎄"}\n')
    assert predict_file("in.jsonl", "--output=out.jsonl")[0] == 2
    status, said, _ = predict_file("in.jsonl", "--output=out.jsonl", "--lenient")
    assert (status, "left out 1 x not JSON" in said) == (0, True)
    assert [row["id"] for row in rows.records("out.jsonl")] == [0, 1, 3]


@pytest.mark.usefixtures("fake_answers")
def test_a_column_inside_another_is_there_or_refused(predict_file: Predict) -> None:
    with open("in.jsonl", "w", encoding="utf-8") as file:
        file.write('{"a": {"document": "좋다"}}\n{"a": {}}\n')
    status, _, err = predict_file("in.jsonl", "--columns=a.nope", "--output=out.csv")
    assert (status, os.listdir()) == (2, ["in.jsonl"])
    assert "in.jsonl has no column a.nope" in err
    assert predict_file("in.jsonl", "--columns=a.document", "--output=out.csv")[0] == 0
