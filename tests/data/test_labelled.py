# SPDX-License-Identifier: Apache-2.0
"""Labelled rows: none lost, bad ones named, held-out shares disjoint; the official splits whole."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from kcmoe.config import gin_files
from kcmoe.data.labelled import Example, check_answers, labelled_examples, spread
from kcmoe.data.splits import held_out
from kcmoe.errors import UserError
from kcmoe.tasks.registry import TASKS, Task, get_task
from kcmoe.vocabulary import Vocabulary

REAL = Path(__file__).parents[2] / "../shared/data"


def task(**changes) -> Task:
    fields = {
        "name": "t",
        "kind": "labelled",
        "files": {"train": ("train.tsv",), "test": ("test.tsv",)},
        "prompt": "리뷰: {document}",
        "target": "label",
        "labels": {"0": "부정적", "1": "긍정적"},
        "id_column": "id",
    }
    return Task(**{**fields, **changes})


def write(folder, rows, name="test.tsv"):
    (folder / name).write_text("id\tdocument\tlabel\n" + rows, encoding="utf-8")


def test_empty_documents_are_kept_and_rows_keep_their_order(tmp_path):
    write(tmp_path, "7\t좋다\t1\n8\t\t0\n9\t별로\t0\n")
    examples = labelled_examples(task(), "test", str(tmp_path))
    assert [(e.id, e.inputs_text, e.target_text) for e in examples] == [
        ("7", "리뷰: 좋다", "긍정적"),
        ("8", "리뷰: ", "부정적"),
        ("9", "리뷰: 별로", "부정적"),
    ]
    assert examples[0].fields["document"] == "좋다"


def test_repeated_ids_are_numbered(tmp_path, caplog):
    write(tmp_path, "7\t좋다\t1\n7\t별로\t0\n")
    with caplog.at_level(logging.WARNING):
        assert [e.id for e in labelled_examples(task(), "test", str(tmp_path))] == ["7", "7#2"]
        labelled_examples(task(), "test", str(tmp_path))
    assert caplog.text.count("1 repeated ids") == 1  # said once, however often a split is read


def test_rows_without_a_valid_label_stop_or_are_counted(tmp_path, caplog):
    write(tmp_path, "7\t좋다\t1\n8\t그럭저럭\t2\n")
    with pytest.raises(UserError, match=r"test.tsv, row 2: column label: '2' is none of '0', '1'"):
        labelled_examples(task(), "test", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert len(labelled_examples(task(), "test", str(tmp_path), strict=False)) == 1
    assert "1 x no valid label" in caplog.text


def test_the_held_out_share_is_disjoint_complete_and_by_text(tmp_path):
    rows = "".join(f"{n}\t댓글 {n % 500}\t{n % 2}\n" for n in range(1000))
    write(tmp_path, rows, "train.tsv")
    divided = task(holdout=0.1)
    train = labelled_examples(divided, "train", str(tmp_path))
    validation = labelled_examples(divided, "validation", str(tmp_path))
    assert len(train) + len(validation) == 1000
    assert 40 < len(validation) < 160
    assert not {e.inputs_text for e in train} & {e.inputs_text for e in validation}
    assert all(held_out(e.inputs_text, 0.1) for e in validation)


def test_splits_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match="has no validation split; it has train, test"):
        labelled_examples(task(), "validation", str(tmp_path))
    with pytest.raises(UserError, match=r"no file matches .*train.tsv"):
        labelled_examples(task(), "train", str(tmp_path))
    write(tmp_path, "")
    with pytest.raises(UserError, match="the test split has no rows"):
        labelled_examples(task(), "test", str(tmp_path))


MISSING = [
    ("a.parquet", None),
    ("a.jsonl", '{"id": 1, "document": "좋다", "label": 1}\n{"id": 2, "document": NaN, "label": 1}\n'
     '{"id": 3, "document": "별로", "label": null}\n{"id": 4, "document": "", "label": 0}\n'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content"), MISSING)
@pytest.mark.parametrize("labels", [{"0": "부정적", "1": "긍정적"}, {}])
def test_missing_values_are_skipped_and_counted(tmp_path, caplog, name, content, labels):
    if content is None:
        frame = {
            "id": [1, 2, 3, 4],
            "document": ["좋다", None, "별로", ""],
            "label": [1.0, 1.0, float("nan"), 0.0] if labels else ["1", "1", None, "0"],
        }
        pq.write_table(pa.table(frame), tmp_path / name)
    else:
        (tmp_path / name).write_text(content, encoding="utf-8")
    own = task(files={"test": (name,)}, labels=labels)
    with caplog.at_level(logging.WARNING):
        examples = labelled_examples(own, "test", str(tmp_path))
    assert [(e.id, e.inputs_text) for e in examples] == [("1", "리뷰: 좋다"), ("4", "리뷰: ")]
    assert "1 x missing document" in caplog.text
    assert "1 x missing label" in caplog.text


def test_what_formats_write_differently_is_no_text(tmp_path):
    frame = {"document": ["좋다", "별로"], "label": [2020.0, 2021.0], "flag": [True, False]}
    pq.write_table(pa.table(frame), tmp_path / "a.parquet")
    free = {"files": {"test": ("a.parquet",)}, "labels": {}, "id_column": ""}
    for target, value in (("label", "2020.0"), ("flag", "True")):
        with pytest.raises(UserError, match=rf"row 1: column {target}: {value} is no text"):
            labelled_examples(task(**free, target=target), "test", str(tmp_path))
    odd = task(**free | {"labels": {"2020": "작년", "2021": "올해"}}, prompt="{label}")
    with pytest.raises(
        UserError, match=r"row 1: column label holds 2020.0, not text; mend the row"
    ):
        labelled_examples(odd, "test", str(tmp_path))
    beside = dataclasses.replace(odd, prompt="{label} {document}")
    assert labelled_examples(beside, "test", str(tmp_path))[0].inputs_text == "2020.0 좋다"


def test_null_is_no_label_whatever_labels_are_called(tmp_path, caplog):
    labels = {"hate": "혐오", "None": "없음"}
    lines = ['{"document": "가", "label": "hate"}', '{"document": "나", "label": null}']
    lines += ['{"document": "다", "label": "None"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    own = {"files": {"test": ("a.jsonl",)}, "labels": labels, "id_column": ""}
    with caplog.at_level(logging.WARNING):
        found = labelled_examples(task(**own), "test", str(tmp_path))
    assert [(e.id, e.target_text) for e in found] == [("test-0", "혐오"), ("test-2", "없음")]
    several = task(**own, multi_label=True)
    assert several.answer(["hate", None]) == "혐오"
    assert several.lacks_answer([None])


@pytest.mark.parametrize("value", [True, "1_0"])
def test_what_only_python_takes_for_a_number_is_no_score(value):
    scores = task(labels={}, target_step=1.0, target_range=(0.0, 20.0))
    with pytest.raises(ValueError, match="is no number"):
        scores.answer(value)


def test_a_missing_id_is_a_number_in_every_format(tmp_path):
    write(tmp_path, "\t좋다\t1\n8\t별로\t0\n")
    assert [e.id for e in labelled_examples(task(), "test", str(tmp_path))] == ["test-0", "8"]


def test_a_blank_answer_is_missing_in_a_table_of_text(tmp_path, caplog):
    write(tmp_path, "7\t좋다\t1\n8\t별로\t\n")
    with caplog.at_level(logging.WARNING):
        assert len(labelled_examples(task(), "test", str(tmp_path))) == 1
    assert "1 x missing label" in caplog.text


FRAME = {
    "document": ['그는 "안녕" 했다', "쉼표, 와 탭", "셋\n째", "00"],
    "stars": [4.0, 3.5, 1.0, 0.1],
    "seen": [True, False, True, False],
}


@pytest.mark.parametrize("target", ["stars", "seen"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.feather"])
def test_a_frame_gives_the_same_examples_in_every_format(tmp_path, name, target):
    rows = [dict(zip(FRAME, cells, strict=True)) for cells in zip(*FRAME.values(), strict=True)]
    path = tmp_path / name
    if name in ("a.csv", "a.tsv"):  # as pandas writes it
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(
                file, delimiter="\t" if name == "a.tsv" else ",", lineterminator="\n"
            )
            writer.writerows([list(FRAME), *([*map(str, row.values())] for row in rows)])
    elif name == "a.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif name == "a.json":
        columns = {key: dict(enumerate(values)) for key, values in FRAME.items()}
        path.write_text(json.dumps(columns), encoding="utf-8")
    elif name == "a.parquet":
        pq.write_table(pa.table(FRAME), path)
    else:
        pyarrow.feather.write_feather(pa.table(FRAME), path)
    labels = {"4": "넷", "3.5": "셋 반", "1": "하나", "0.1": "영점일"}
    own = task(
        files={"test": (name,)},
        prompt="{document} {stars} {seen}",
        target=target,
        id_column="",
        labels=labels if target == "stars" else {"true": "참", "false": "거짓"},
    )
    examples = labelled_examples(own, "test", str(tmp_path))
    assert [e.inputs_text for e in examples] == [
        '그는 "안녕" 했다 4.0 true',
        "쉼표, 와 탭 3.5 false",
        "셋\n째 1.0 true",
        "00 0.1 false",
    ]
    words = ["넷", "셋 반", "하나", "영점일"] if target == "stars" else ["참", "거짓"] * 2
    assert [e.target_text for e in examples] == words


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_empty_texts_are_missing_in_a_task_of_ones_own_whatever_the_format(tmp_path, name, caplog):
    # CSV and TSV as pandas writes them, in which null and an empty text are the same.
    texts = {
        "a.csv": "document,label\n좋다,1\n,0\n  ,0\n별로,0\n",
        "a.tsv": "document\tlabel\n좋다\t1\n\t0\n  \t0\n별로\t0\n",
        "a.jsonl": '{"document":"좋다","label":1}\n{"document":null,"label":0}\n'
        '{"document":"","label":0}\n{"document":"별로","label":0}\n',
    }
    if name in texts:
        (tmp_path / name).write_text(texts[name], encoding="utf-8")
    else:
        frame = {"document": ["좋다", None, "", "별로"], "label": [1, 0, 0, 0]}
        pq.write_table(pa.table(frame), tmp_path / name)
    macros = {
        "MIXTURE_OR_TASK_NAME": "own",
        "TASK_TEST_FILES": name,
        "TASK_PROMPT": "{document}",
        "TASK_TARGET_COLUMN": "label",
        "TASK_LABELS": {0: "부정", 1: "긍정"},
    }
    settings = [f"{name}={value!r}" for name, value in macros.items()]
    own = get_task(gin_files.parse([], settings))
    with caplog.at_level(logging.WARNING):
        found = labelled_examples(own, "test", str(tmp_path))
    assert [e.inputs_text for e in found] == ["좋다", "별로"]
    assert "2 x missing document" in caplog.text
    kept = get_task(gin_files.parse([], [*settings, "TASK_KEEP_EMPTY=True"]))
    nulls = name in ("a.jsonl", "a.parquet")
    assert len(labelled_examples(kept, "test", str(tmp_path))) == (3 if nulls else 4)


def test_words_for_a_missing_value_are_no_labels(tmp_path, caplog):
    write(tmp_path, "1\t좋다\t1\n2\tNA\tNaN\n3\t가\t<NA>\n4\tNA\t0\n")
    with caplog.at_level(logging.WARNING):
        found = labelled_examples(task(), "test", str(tmp_path))
    assert [e.inputs_text for e in found] == ["리뷰: 좋다", "리뷰: NA"]
    assert "2 x missing label" in caplog.text
    named = task(
        labels={"NA": "모름", "0": "부정", "1": "긍정", "nan": "없음", "<NA>": "빔", "NaN": "무"}
    )
    assert len(labelled_examples(named, "test", str(tmp_path))) == 4


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("target", ["label", "document"])
def test_words_for_a_missing_value_are_no_free_text_either(tmp_path, caplog, name, target):
    """In a task of one's own, inputs and answers alike; the same in every format."""
    words = ["답", "NaN", "NA", "null", " nan ", "<NA>", "NaT", "널"]
    frame = {"document": words, "label": ["가"] * 8}
    rows = zip(*frame.values(), strict=True)
    if name.endswith("parquet"):
        pq.write_table(pa.table(frame), tmp_path / name)
    elif name.endswith("jsonl"):
        lines = (json.dumps(dict(zip(frame, row, strict=True))) + "\n" for row in rows)
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    else:
        between = "," if name.endswith("csv") else "\t"
        lines = [between.join(row) for row in (frame, *rows)]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    prompt = "{label}" if target == "document" else "{document}"
    own = task(
        files={"test": (name,)},
        prompt=prompt,
        target=target,
        labels={},
        id_column="",
        keep_empty=False,
    )
    with caplog.at_level(logging.WARNING):
        found = labelled_examples(own, "test", str(tmp_path))
    texts = [e.target_text if target == "document" else e.inputs_text for e in found]
    assert texts == ["답", "널"]
    assert "6 x missing document" in caplog.text
    kept = dataclasses.replace(own, keep_empty=True)
    assert len(labelled_examples(kept, "test", str(tmp_path))) == 8


def test_a_held_out_share_without_rows_names_the_setting(tmp_path):
    write(tmp_path, "1\t좋다\t1\n2\t별로\t0\n", "train.tsv")
    with pytest.raises(UserError, match=r"validation split has no rows.*TASK_HOLDOUT = 0.0001"):
        labelled_examples(task(holdout=0.0001), "validation", str(tmp_path))
    with pytest.raises(UserError, match=r"train split has no rows.*TASK_HOLDOUT = 0.9999"):
        labelled_examples(task(holdout=0.9999), "train", str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "length", "message"),
    [
        ({"0": " 부정", "1": " 긍정"}, 8, "comes back from the vocabulary as '부정'"),
        ({"0": "아주  나쁨", "1": "좋음"}, 8, "comes back from the vocabulary as '아주 나쁨'"),
        ({"0": "긍정 ", "1": "긍정"}, 8, "comes back from the vocabulary as '긍정'"),
        ({"0": "매우 부정적인 의견입니다", "1": "매우 부정적인 의견이 아닙니다"}, 3, "cut to 3"),
    ],
)  # fmt: skip
def test_words_that_cannot_be_answered_are_refused(labels, length, message):
    with pytest.raises(UserError, match=message):
        check_answers(task(labels=labels), Vocabulary(), length)


@pytest.mark.parametrize(
    "own", [t for t in TASKS.values() if t.kind == "labelled"], ids=lambda t: t.name
)
def test_the_answers_of_every_task_here_come_back(own):
    check_answers(own, Vocabulary(), 16)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets are not beside the repository")
@pytest.mark.parametrize(
    ("name", "split", "rows", "words"),
    [
        ("nsmc", "test", 50_000, {"부정적": 24_827, "긍정적": 25_173}),
        ("kornli", "test", 5_010, {"함의": 1_670, "중립": 1_670, "모순": 1_670}),
        ("korsts", "test", 1_379, None),
        ("hate_speech", "validation", 471, None),
    ],
)
def test_the_official_splits_are_whole(name, split, rows, words):
    examples = labelled_examples(TASKS[name], split, str(REAL))
    assert len(examples) == rows
    if words:
        targets = [e.target_text for e in examples]
        assert {word: targets.count(word) for word in words} == words
    if name == "nsmc":
        assert sum(not e.fields["document"] for e in examples) == 3


def test_spread_takes_from_everywhere_in_order() -> None:
    rows = [Example(str(i), "", "", {}) for i in range(10)]
    assert [row.id for row in spread(rows, 4)] == ["0", "2", "5", "7"]
    assert spread(rows, 10) == spread(rows, 99) == rows
