# SPDX-License-Identifier: Apache-2.0
"""What a task is: where its rows are, and how a row becomes a prompt and an answer.

Opens no file and imports only the standard library; which tasks there are stands in `registry.py`.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from typing import Any, Literal

from kcmoe.errors import UserError, near_misses

SPLITS = ("train", "validation", "test")
METRICS = ("accuracy", "macro_f1", "pearson", "spearman")
STEPS = (0.1, 0.2, 0.5, 1.0)  # those that one decimal can write and that divide 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One corpus or one labelled set.

    Attributes:
      name: what `MIXTURE_OR_TASK_NAME` says.
      kind: "span_corruption" (text only) or "labelled" (prompt in, word out).
      files: split -> paths, which may have wildcards. Relative ones are below DATA_DIR; "samples:x" is a
        file shipped with the package.
      columns: the columns read. A span corruption task has one, the text.
      prompt: the model's input, with `{column}` where a column goes.
      target: column of the answer.
      labels: value in the `target` column (as text) -> Korean word the model generates, in order. Empty
        where the answer is free text or a number.
      target_step: answers are numbers rounded to this step, one of `STEPS`, and written with one decimal; 0
        for words.
      target_range: lowest and highest of those numbers.
      metrics: names from `METRICS` that suit the answers, see `suitable_metrics`.
      id_column: column that names an example; "" numbers them.
      holdout: share of `train` held out as `validation` where no validation file exists; a row is held
        out by the hash of its inputs, so equal texts are on one side.
      encoding: of text files.
    """

    name: str
    kind: Literal["span_corruption", "labelled"]
    files: Mapping[str, tuple[str, ...]]
    prompt: str = ""
    target: str = ""
    text_column: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    target_step: float = 0.0
    target_range: tuple[float, ...] = ()
    metrics: tuple[str, ...] = ()
    id_column: str = ""
    holdout: float = 0.0
    encoding: str = "utf-8"

    @property
    def label_words(self) -> tuple[str, ...]:
        """The words among which rank evaluation chooses; empty where answers are free or numbers."""
        return tuple(self.labels.values())

    @property
    def input_columns(self) -> tuple[str, ...]:
        """Columns that the model reads."""
        if self.kind == "span_corruption":
            return (self.text_column,)
        return tuple(dict.fromkeys(name for _, name, *_ in _fields(self.prompt) if name))

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have files or are held out."""
        held_out = self.holdout > 0 and "train" in self.files
        return tuple(s for s in SPLITS if self.files.get(s) or (s == "validation" and held_out))

    def is_held_out(self, split: str) -> bool:
        """Whether `split` is cut from the training files rather than read from files of its own."""
        return split == "validation" and not self.files.get("validation") and self.holdout > 0

    @property
    def suitable_metrics(self) -> tuple[str, ...]:
        """The metrics that mean something for answers of this kind."""
        if self.kind == "span_corruption":
            return ()
        if self.target_step:
            return ("pearson", "spearman")
        return ("accuracy", "macro_f1") if self.labels else ("accuracy",)

    def inputs(self, row: Mapping[str, Any]) -> str:
        """The prompt for one row of input columns."""
        return self.prompt.format_map({name: cell_text(row[name]) for name in self.input_columns})

    def answer(self, value: Any) -> str:
        """The text the model learns to generate for `value` of the target column.

        Raises:
          ValueError: if the value is no label of this task, or no number where one is needed.
        """
        if self.target_step:
            return format_number(float(value), self.target_step)
        text = cell_text(value)
        if not self.labels:
            return text
        if text not in self.labels:
            raise ValueError(f"{text!r} is none of {', '.join(map(repr, self.labels))}")
        return self.labels[text]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several tasks drawn by weight; metrics are those of each task."""

    name: str
    weights: tuple[tuple[Task, float], ...]


def check(task: Task) -> None:
    """Raises `UserError` for fields that are missing or do not go together; names their macros."""
    if not task.files:
        raise UserError(f"task {task.name} has no files: set TASK_TRAIN_FILES or TASK_TEST_FILES")
    if task.kind == "labelled" and not task.input_columns:
        raise UserError(
            f"task {task.name} needs TASK_PROMPT with the columns it reads in {{braces}}"
        )
    if task.kind == "labelled" and not task.target:
        raise UserError(f"task {task.name} needs TASK_TARGET_COLUMN, the column of the answer")
    if not 0 <= task.holdout < 1:
        raise UserError(f"TASK_HOLDOUT = {task.holdout} must be at least 0 and below 1")
    if len(set(task.label_words)) < len(task.labels):
        raise UserError(f"TASK_LABELS of {task.name} gives two values the same word")
    if task.target_step not in (0, *STEPS):
        raise UserError(
            f"TASK_TARGET_STEP = {task.target_step} of {task.name}: answers have one decimal, so the "
            f"step is one of {', '.join(map(str, STEPS))}"
        )
    for metric in task.metrics:
        if metric not in METRICS:
            raise UserError(f"TASK_METRICS: no metric {metric}.{near_misses(metric, METRICS)}")
        if metric not in task.suitable_metrics:
            raise UserError(
                f"TASK_METRICS: {metric} does not suit {task.name}, {_answers_are(task)}; "
                f"take {' or '.join(task.suitable_metrics) or 'none'}"
            )


def _answers_are(task: Task) -> str:
    if task.kind == "span_corruption":
        return "which is plain text for pretraining"
    if task.target_step:
        return "whose answers are numbers (TASK_TARGET_STEP)"
    return "whose answers are labels" if task.labels else "whose answers are free text"


def format_number(value: float, step: float) -> str:
    """`value` rounded to the nearest `step`, with one decimal, as T5 writes STS-B scores."""
    per_unit = round(1 / step)  # multiplying by 5 and dividing by 0.2 round 0.3 differently
    return f"{round(value * per_unit) / per_unit:.1f}"


def cell_text(value: Any) -> str:
    """A cell as text: 1.0 and True become "1" and "true" so that CSV and Parquet give the same labels."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _fields(prompt: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise UserError(
            f"TASK_PROMPT {prompt!r}: {error}; a literal brace is written twice"
        ) from None
