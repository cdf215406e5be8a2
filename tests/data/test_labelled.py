# SPDX-License-Identifier: Apache-2.0
"""Labelled rows: none lost, bad ones named, held-out shares disjoint; the official splits whole."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kcmoe.data.labelled import Example, labelled_examples, spread
from kcmoe.data.splits import held_out
from kcmoe.errors import UserError
from kcmoe.tasks.registry import TASKS, Task

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
    assert "1 repeated ids" in caplog.text


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


def test_nulls_are_empty_texts(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": ["1", "2"], "document": ["좋다", None], "label": [1, 0]})
    pq.write_table(table, tmp_path / "test.parquet")
    parquet = task(files={"test": ("test.parquet",)})
    assert [e.inputs_text for e in labelled_examples(parquet, "test", str(tmp_path))] == [
        "리뷰: 좋다",
        "리뷰: ",
    ]


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
