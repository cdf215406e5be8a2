# SPDX-License-Identifier: Apache-2.0
"""What is said to be held out is what training held out, and why where it cannot be listed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from kcmoe.config.data import DataConfig
from kcmoe.evaluation.report import model_dir_of
from kcmoe.evaluation.selection import selection
from kcmoe.tasks.registry import TASKS, Task


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Reviews of which the second has no known label."""
    rows = "document\tlabel\n좋다\t1\n뭐지\t?\n별로\t0\n"
    (tmp_path / "validation.tsv").write_text(rows, encoding="utf-8")
    files = {"validation": ("validation.tsv",)}
    return dataclasses.replace(TASKS["sample_reviews"], files=files)


def test_rows_left_out_of_training_are_left_out_here(task: Task, tmp_path: Path) -> None:
    data = DataConfig(data_dir=str(tmp_path), strict=False)
    found = selection(task, {}, data, str(tmp_path))
    assert found.ids == ("validation-0", "validation-2")
    assert found.rule == "all rows of validation.tsv; never trained on"


def test_the_reason_is_said(task: Task, tmp_path: Path) -> None:
    found = selection(task, {}, DataConfig(data_dir=str(tmp_path)), str(tmp_path))
    assert found.ids == ()
    assert "validation.tsv, row 2: column label" in found.rule
    assert "set DATA_STRICT = False" in found.rule


def test_a_run_of_another_task_held_nothing_out_of_this_one(task: Task, tmp_path: Path) -> None:
    (tmp_path / "config.gin").write_text("MIXTURE_OR_TASK_NAME = 'nsmc'\n")
    best = '{"checkpoint": "checkpoint_5", "metric": "accuracy", "value": 0.8}'
    (tmp_path / "best.json").write_text(best)
    data = DataConfig(data_dir=str(tmp_path), strict=False)
    found = selection(task, {"MIXTURE_OR_TASK_NAME": task.name}, data, str(tmp_path))
    assert (found.ids, found.used, found.trained_on) == ((), 0, "nsmc")
    assert "this run was trained on nsmc" in found.rule
    said = found.lines("run/checkpoint_6", "")
    assert (
        said[-1] == "chosen on nsmc: checkpoint_5 by validation accuracy 0.8000 (not checkpoint_6)"
    )
    (tmp_path / "config.gin").write_text(
        f"MIXTURE_OR_TASK_NAME = 'both'\nMIXTURE = {{'nsmc': 1, '{task.name}': 1}}\n"
    )
    assert selection(task, {}, data, str(tmp_path)).trained_on == ""


def test_a_run_in_a_bucket_tells_its_task_and_its_choice(task: Task, bucket: Path) -> None:
    best = {"checkpoint": "checkpoint_2", "metric": "accuracy", "value": 0.5}
    (bucket / "chosen").mkdir()
    (bucket / "chosen/best.json").write_text(json.dumps(best))
    (bucket / "chosen/config.gin").write_text("MIXTURE_OR_TASK_NAME = 'sample_reviews'\n")
    model_dir = model_dir_of("gs://bucket/chosen/checkpoint_2")
    assert model_dir == "gs://bucket/chosen"
    assert model_dir_of("gs://bucket") == "gs://bucket"
    found = selection(task, {}, DataConfig(data_dir="absent"), model_dir)
    assert found.best == best
    assert not found.trained_on
