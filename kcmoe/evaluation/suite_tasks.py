# SPDX-License-Identifier: Apache-2.0
"""The tasks of `kcmoe evaluate --suite`, and what counting character n-grams scores on them.

The baselines are measured by `benchmarks/ngram_baseline.py` and kept in `baselines.json`, so that whoever
reads them needs no scikit-learn.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kcmoe.evaluation.metrics import Measurement
from kcmoe.tasks.registry import TASKS, Task, named_task

BASELINES = Path(__file__).with_name("baselines.json")

# Task -> splits with labels that are for evaluation, the final judge last.
SUITE: Mapping[str, tuple[str, ...]] = {
    "nsmc": ("validation", "test"),
    "kornli": ("validation", "test"),
    "korsts": ("validation", "test"),
    "klue_sts": ("validation",),
    "hate_speech": ("validation",),
    "hate_speech_binary": ("validation",),
    "apeach": ("test",),
    # Never the test split: where the official training file is missing, that of the test is trained on.
    "kmhas": ("validation",),
    "curse": ("validation",),
    "three_i_four_k": ("validation", "test"),
    "question_pair": ("validation", "test"),
}


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What n-grams score on one split.

    Attributes:
      rows: of the split; where a split here has another number, it is not the one that was measured.
      metrics: by name.
      learnt_from: the task and number of rows that were learnt from.
    """

    rows: int
    metrics: Mapping[str, Measurement]
    learnt_from: str


def chosen_split(name: str, wanted: str | None) -> str | None:
    """The split of a task of the suite: `wanted`, or the final judge for None; None where it has none."""
    splits = SUITE[name]
    return splits[-1] if wanted is None else wanted if wanted in splits else None


def same_question(one: Task, other: Task) -> bool:
    """Whether two tasks ask the same and answer with the same words, wherever their columns come from."""

    def asked(task: Task) -> tuple[str, frozenset[str]]:
        return task.inputs(dict.fromkeys(task.input_columns, "")), frozenset(task.label_words)

    return "labelled" == one.kind == other.kind and asked(one) == asked(other)


def learnt(name: str, trained_on: Sequence[str]) -> bool:
    """Whether a run on these tasks learnt the question of task `name`; True where none are known."""
    known = [TASKS[one] for one in trained_on if one in TASKS]
    return not trained_on or any(same_question(one, named_task(name)) for one in known)


def read_baselines() -> dict[tuple[str, str], Baseline]:
    """(task, split) -> its baseline, from `baselines.json`."""
    content = json.loads(BASELINES.read_text(encoding="utf-8"))
    return {
        (task, split): Baseline(
            measured["rows"],
            {name: Measurement(*values) for name, values in measured["metrics"].items()},
            f"{entry['learnt_from']}, {entry['train_rows']:,} rows",
        )
        for task, entry in content["tasks"].items()
        for split, measured in entry["splits"].items()
    }
