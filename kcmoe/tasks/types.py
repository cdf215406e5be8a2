# SPDX-License-Identifier: Apache-2.0
"""What a task is: where its rows are, and how a row becomes a prompt and an answer.

Opens no file and imports nothing heavy; which tasks there are stands in `registry.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from kcmoe.errors import UserError, near_misses
from kcmoe.io.given import composed
from kcmoe.io.wording import shown

SPLITS = ("train", "validation", "test")
METRICS = ("accuracy", "macro_f1", "micro_f1", "pearson", "spearman")
LABEL_SEPARATOR = ", "  # between the words of an answer that has several labels
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
        where the answer is free text or a number. Several values may share a word.
      multi_label: a row has one label or more. The `target` column holds a list, or a text with commas
        between the values; the answer is the words in the order of `labels` with `LABEL_SEPARATOR` between.
      target_step: answers are numbers rounded to this step, one of `STEPS`, and written with one decimal; 0
        for words.
      target_range: lowest and highest of those numbers.
      metrics: names from `METRICS` that suit the answers, see `suitable_metrics`.
      id_column: column that names an example; "" numbers them.
      holdout: share of `train` held out as `validation` where no validation file exists; a row is held
        out by the hash of its inputs, so equal texts are on one side.
      encoding: of text files.
      keep_empty: rows whose inputs are empty texts are examples too, as the three of the official NSMC test,
        and NA is a word; not so in a task of one's own, whose file may have been CSV, which knows no other
        null.
    """

    name: str
    kind: Literal["span_corruption", "labelled"]
    files: Mapping[str, tuple[str, ...]]
    prompt: str = ""
    target: str = ""
    text_column: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    multi_label: bool = False
    target_step: float = 0.0
    target_range: tuple[float, ...] = ()
    metrics: tuple[str, ...] = ()
    id_column: str = ""
    holdout: float = 0.0
    encoding: str = "utf-8"
    keep_empty: bool = True

    @property
    def label_words(self) -> tuple[str, ...]:
        """The different words of `labels`, in order; empty where answers are free text or numbers."""
        return tuple(dict.fromkeys(self.labels.values()))

    @property
    def label_answers(self) -> tuple[str, ...]:
        """The texts among which `rank` chooses: `label_words`, and with several labels also every pair.

        Larger sets are rare, and the probabilities of the pairs already say how likely each label is.
        """
        pairs = itertools.combinations(self.label_words, 2) if self.multi_label else ()
        return (*self.label_words, *map(LABEL_SEPARATOR.join, pairs))

    @property
    def input_columns(self) -> tuple[str, ...]:
        """Columns that the model reads."""
        if self.kind == "span_corruption":
            return (self.text_column,)
        return tuple(dict.fromkeys(name for _, name in _parts(self.prompt) if name))

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
        if self.multi_label:
            return ("micro_f1", "macro_f1", "accuracy")
        return ("accuracy", "macro_f1") if self.labels else ("accuracy",)

    def inputs(self, row: Mapping[str, Any]) -> str:
        """The prompt for one row of input columns."""
        return "".join(
            text + (_input_text(row[name]) if name else "") for text, name in _parts(self.prompt)
        )

    def answer(self, value: Any) -> str:
        """The text the model learns to generate for `value` of the target column.

        Raises:
          ValueError: if the value is not a label of this task, or not a number of its range where one is
            needed.
        """
        if self.target_step:
            if isinstance(value, bool) or "_" in str(value):  # Python's float takes both
                raise ValueError(f"{value!r} is no number")
            number = float(value)
            if self.target_range and not self.target_range[0] <= number <= self.target_range[1]:
                low, high = self.target_range
                raise ValueError(f"{value!r} is not in the range {low} to {high}")
            return format_number(number, self.target_step)
        if self.multi_label:
            values = value.split(",") if isinstance(value, str) else value
            values = values if isinstance(values, list | tuple) else [values]
            words = {self._word(each) for each in values if not is_missing(each)}
            if not words:
                raise ValueError("no label where at least one is needed")
            return LABEL_SEPARATOR.join(word for word in self.label_words if word in words)
        if self.labels:
            return self._word(value)
        if isinstance(value, bool | float):  # written in several ways: true, True; 1.0, 1
            raise ValueError(f"{value!r} is no text; a free answer is written as text")
        return str(value)

    def _word(self, value: Any) -> str:
        key = label_key(value.strip() if self.multi_label and isinstance(value, str) else value)
        if key not in self.labels:
            known = list(map(repr, self.labels))
            more = f" and {len(known) - 20} more" if len(known) > 20 else ""
            raise ValueError(f"{key!r} is none of {', '.join(known[:20])}{more}")
        return self.labels[key]

    def lacks_answer(self, value: Any) -> bool:
        """Whether a row with this value of the target column has no answer: missing, rather than wrong."""
        missing = is_missing(value)
        if not isinstance(value, str):
            return missing
        if self.labels or self.target_step or not self.keep_empty:
            missing = missing or _says_missing(value)
        return missing and label_key(value) not in self.labels

    def lacks_input(self, value: Any) -> bool:
        """Whether a row with this value of an input column has no input: null, or what CSV writes for it."""
        if self.keep_empty:
            return value is None
        return is_missing(value) or _says_missing(value)

    def wrong_input(self, row: Mapping[str, Any]) -> str:
        """What is wrong with the inputs of a row: a number where the prompt has one text; "" for nothing.

        Beside a text numbers may stand, an age or a year.
        """
        if len(self.input_columns) > 1 or isinstance(row[self.input_columns[0]], str):
            return ""
        return f"column {self.input_columns[0]} holds {row[self.input_columns[0]]!r}, not text"

    def labels_in(self, answer: str) -> tuple[int, ...]:
        """The labels that `answer` names, as ascending positions in `label_words`.

        Returns:
          One position, or with `multi_label` several; () where a part of the answer is no label.
        """
        words = answer.split(LABEL_SEPARATOR) if self.multi_label else [answer]
        if not set(words) <= set(self.label_words):
            return ()
        return tuple(sorted({self.label_words.index(word) for word in words}))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several tasks drawn by weight; metrics are those of each task."""

    name: str
    weights: tuple[tuple[Task, float], ...]


def check(task: Task) -> None:
    """Raises `UserError` for fields that are missing or do not go together; names their macros."""
    if not task.files:
        raise UserError(f"task {task.name} has no files: set TASK_TRAIN_FILES or TASK_TEST_FILES")
    _parts(task.prompt)
    asks = {
        "TASK_PROMPT": task.prompt,
        "TASK_TARGET_COLUMN": task.target,
        "TASK_LABELS": task.labels,
    }
    given = [name for name, value in asks.items() if value]
    if task.text_column and given:
        raise UserError(
            f"task {task.name} has TASK_TEXT_COLUMN, which makes it plain text for pretraining, and "
            f"{given[0]}, which belongs to a task with answers; leave one of them out"
        )
    if task.kind == "labelled" and not task.input_columns:
        raise UserError(
            f"task {task.name} needs TASK_PROMPT with the columns it reads in {{braces}}"
        )
    if task.kind == "labelled" and not task.target:
        raise UserError(f"task {task.name} needs TASK_TARGET_COLUMN, the column of the answer")
    if not 0 <= task.holdout < 1:
        raise UserError(f"TASK_HOLDOUT = {task.holdout} must be at least 0 and below 1")
    _check_labels(task)
    if task.target_step not in (0, *STEPS):
        raise UserError(
            f"TASK_TARGET_STEP = {task.target_step} of {task.name}: answers have one decimal, so the "
            f"step is one of {', '.join(map(str, STEPS))}"
        )
    for metric in task.metrics:
        if metric not in METRICS:
            raise UserError(
                f"TASK_METRICS: no metric {metric}.{near_misses(metric, METRICS)} There are "
                f"{', '.join(METRICS)}"
            )
        if metric not in task.suitable_metrics:
            raise UserError(
                f"TASK_METRICS: {metric} does not suit {task.name}, {_answers_are(task)}; "
                f"take {' or '.join(task.suitable_metrics) or 'none'}"
            )


def _check_labels(task: Task) -> None:
    if task.labels and len(task.label_words) < 2:
        raise UserError(f"TASK_LABELS of {task.name} must give at least two different words")
    if not task.multi_label:
        return
    if not task.labels:
        raise UserError(f"TASK_MULTI_LABEL: task {task.name} needs TASK_LABELS as well")
    for text in (*task.labels, *task.label_words):
        if "," in text:
            raise UserError(
                f"TASK_LABELS of {task.name}: {text!r} has a comma, which stands between labels"
            )


def _answers_are(task: Task) -> str:
    if task.kind == "span_corruption":
        return "which is plain text for pretraining"
    if task.target_step:
        return "whose answers are numbers (TASK_TARGET_STEP)"
    if task.multi_label:
        return "whose answers are one label or more (TASK_MULTI_LABEL)"
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


_FRACTION = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")


def label_key(value: Any) -> str:
    """A value of the target column, or a key of `labels`, as labels are compared.

    Equal in every format: 1, 1.0, "1" and "1.0" are "1"; True, "True" and "true" are "true"; texts are
    composed. "01" stays, as no number is written so.
    """
    if not isinstance(value, str):
        return cell_text(value)
    if value in ("True", "TRUE", "False", "FALSE"):
        return value.lower()
    if not value.isdigit() and _FRACTION.fullmatch(value) and math.isfinite(float(value)):
        return cell_text(float(value)) if set(".eE") & set(value) else value
    return composed(value)


# What programs write into text files for a missing value. Where `keep_empty` is set they are what they say,
# but for labels and numbers, which no such word is.
_MISSING_WORDS = {"nan", "NaN", "NAN", "NaT", "NA", "N/A", "<NA>", "null", "NULL", "None"}


def is_missing(value: Any) -> bool:
    """Whether a cell of the target column holds nothing: null, NaN, a blank text, or a list of these."""
    if isinstance(value, list):
        return bool(value) and all(map(is_missing, value))
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _says_missing(value: Any) -> bool:
    return isinstance(value, str) and value.strip() in _MISSING_WORDS


def _input_text(value: Any) -> str:
    """A cell as a part of the prompt; a number or a truth value as most writers of CSV have it."""
    if isinstance(value, bool) or value in ("True", "False"):
        return str(value).lower()
    return str(value)


_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@functools.lru_cache(maxsize=64)
def _parts(prompt: str) -> tuple[tuple[str, str], ...]:
    """Texts of a prompt, each with the column that follows it ("" for none).

    Raises:
      UserError: for a brace that belongs to no column, or one without a name.
    """
    found: list[tuple[str, str]] = []
    text, end = "", 0
    for match in _PART.finditer(prompt):
        text += prompt[end : match.start()]
        end = match.end()
        if match[0] in ("{{", "}}"):
            text += match[0][0]
        elif match[1]:
            found.append((text, match[1]))
            text = ""
        else:
            what = "{} names no column" if match[0] == "{}" else f"a {match[0]} stands alone"
            raise UserError(
                f"TASK_PROMPT {shown(prompt)}: {what}; a prompt is text with {{column}} and nothing else, "
                "and a literal brace is written twice"
            )
    return (*found, (text + prompt[end:], ""))
