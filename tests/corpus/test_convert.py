# SPDX-License-Identifier: Apache-2.0
"""Published files of every layout in the catalogue become the same kind of table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kcmoe.corpus.catalogue import DATA_SETS
from kcmoe.corpus.convert import convert
from kcmoe.corpus.types import Table
from kcmoe.errors import UserError
from kcmoe.tasks.registry import TASKS


def made(tmp_path: Path, name: str, number: int, content: str) -> list[dict[str, Any]]:
    """Rows of table `number` of the set `name` when its source holds `content`."""
    table = DATA_SETS[name].tables[number]
    (tmp_path / name).mkdir(exist_ok=True)
    for source in table.sources:
        (tmp_path / source).write_text(content, encoding="utf-8", newline="")
    convert(table, tmp_path, tmp_path)
    return pq.read_table(tmp_path / table.file).to_pylist()


def test_quoted_cells_and_several_labels(tmp_path):
    content = 'document\tlabel\n그냥 글\t8\n"1. ""인용"" 글"\t2,3\n'
    assert made(tmp_path, "kmhas", 0, content) == [
        {"text": "그냥 글", "labels": [8]},
        {"text": '1. "인용" 글', "labels": [2, 3]},
    ]
    column = pq.read_schema(tmp_path / "kmhas/train.parquet").field("labels")
    assert column.type == pa.list_(pa.int64())


def test_a_separator_inside_the_text(tmp_path):
    content = "".join(f"글 {i} | 끝|{i % 2}\r\n" for i in range(200))
    train, validation = (made(tmp_path, "curse", number, content) for number in (0, 1))
    assert train[0].keys() == {"text", "label"}
    assert len(train) + len(validation) == 200
    assert 15 < len(validation) < 55
    assert not {row["text"] for row in train} & {row["text"] for row in validation}
    assert all(row["text"].endswith("| 끝") for row in train)


def test_columns_without_names(tmp_path):
    assert made(tmp_path, "three_i_four_k", 0, "3\t문 닫아\t줘\n0\t단어\n") == [
        {"text": "문 닫아\t줘", "label": 3},
        {"text": "단어", "label": 0},
    ]


def test_values_inside_objects(tmp_path):
    labels = {"label": 4.9, "real-label": 4.857, "binary-label": 1}
    row = {"guid": "a", "source": "b", "sentence1": "가", "sentence2": "나", "labels": labels}
    assert made(tmp_path, "klue_sts", 0, json.dumps([row])) == [
        {
            "guid": "a",
            "source": "b",
            "sentence1": "가",
            "sentence2": "나",
            "label": 4.9,
            "real_label": 4.857,
            "binary_label": 1,
        }
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("kmhas", "document\tlabel\n글\tx\n"),
        ("kmhas", "document\tlabel\n글\n"),
        ("klue_sts", "[{}]"),
    ],
)
def test_other_content_than_expected_is_named_and_leaves_nothing(tmp_path, name, content):
    with pytest.raises(UserError, match="is not as expected"):
        made(tmp_path, name, 0, content)
    assert list((tmp_path / name).iterdir()) == []


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_catalogue_makes_the_columns_that_tasks_read(task):
    tables: dict[str, Table] = {t.file: t for each in DATA_SETS.values() for t in each.tables}
    for file in (name for names in task.files.values() for name in names):
        if file in tables:
            read = {*task.input_columns, task.target, task.id_column} - {""}
            assert read <= set(tables[file].columns), file
        else:
            assert file.startswith(("samples:", "comments/")), f"nothing makes {file}"
