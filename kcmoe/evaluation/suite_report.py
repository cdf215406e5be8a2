# SPDX-License-Identifier: Apache-2.0
"""The results of a suite: a table for people, Markdown for documents, JSON for programs, and a picture."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from kcmoe.evaluation.suite_tasks import Baseline
from kcmoe.io.drawing import Bars, Picture
from kcmoe.io.wording import aligned, markdown

_HEAD = ("task", "split", "metric", "x 100", "±", "rows", "n-grams", "difference")
_NONE = "-"


@dataclasses.dataclass(frozen=True)
class Row:
    """One task of a suite.

    Attributes:
      task: its name.
      split: the split that was read.
      protocol: rank or generate.
      rows: how many rows of it were answered.
      of_rows: how many it has.
      metrics: name -> (value, standard error), None where there is no number.
      seconds: how long it took, compilation included.
      baseline: what n-grams score on these rows, None where that was not measured.
      learnt: whether the run trained on this question.
    """

    task: str
    split: str
    protocol: str
    rows: int
    of_rows: int
    metrics: Mapping[str, tuple[float | None, float | None]]
    seconds: float
    baseline: Baseline | None
    learnt: bool

    def counted(self, metric: str) -> float | None:
        """What n-grams score by this metric."""
        found = self.baseline.metrics.get(metric) if self.baseline else None
        return None if found is None else found.value


@dataclasses.dataclass(frozen=True)
class SuiteReport:
    """One checkpoint on all tasks whose data are here.

    Attributes:
      checkpoint: its folder.
      step: training step.
      settings: what the answers depend on besides the weights.
      rows: the results.
      absent: tasks whose data are not here.
      download: the command that fetches them; "" for none.
    """

    checkpoint: str
    step: int
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    absent: Sequence[str]
    download: str

    def table(self) -> list[str]:
        """Lines for a screen: one row per task and metric, and what is to be known about them."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        title = f"{self.checkpoint} (step {self.step:,}; {settings})"
        seconds = sum(row.seconds for row in self.rows)
        lines = [title, "", *aligned(self._cells(), "<<<>"), ""]
        lines.append("± is one standard error; n-grams: regressions on counted character n-grams")
        lines += self._notes()
        return [*lines, f"{sum(row.rows for row in self.rows):,} answers took {seconds:,.0f} s"]

    def markdown(self) -> list[str]:
        """The table for a document, with its notes below."""
        return [*markdown(self._cells(), "<<<>"), *(f"\n{note}." for note in self._notes())]

    def _cells(self) -> list[Sequence[str]]:
        several = len({row.protocol for row in self.rows}) > 1
        cells: list[Sequence[str]] = [_HEAD]
        for row in self.rows:
            for place, (metric, (value, error)) in enumerate(row.metrics.items()):
                counted = row.counted(metric)
                known = value is not None and counted is not None
                difference = f"{100 * (value - counted):+.2f}" if known else _NONE  # type: ignore[operator]
                name = row.task + ("" if row.learnt else " *")
                protocol = f", {row.protocol}" if several else ""
                part = "" if row.rows == row.of_rows else f" of {row.of_rows:,}"
                first = [name, row.split + protocol] if not place else ["", ""]
                rows = f"{row.rows:,}{part}" if not place else ""
                numbers = [_hundred(value), _hundred(error), rows, _hundred(counted), difference]
                cells.append([*first, metric, *numbers])
        return cells

    def _notes(self) -> list[str]:
        notes = []
        if any(not row.learnt for row in self.rows):
            notes.append("* the run was not trained on this question")
        if self.absent:
            notes.append(f"no data here for {', '.join(self.absent)}: {self.download}")
        return notes

    def as_json(self) -> dict[str, Any]:
        """The same for programs; metrics are fractions."""
        return {
            "checkpoint": self.checkpoint,
            "step": self.step,
            "settings": dict(self.settings),
            "rows": [_json(row) for row in self.rows],
            "absent": list(self.absent),
        }

    def picture(self) -> Picture:
        """Bars of every task's first metric beside those of the n-grams."""
        groups, ours, errors, counted = [], [], [], []
        for row in self.rows:
            metric, (value, error) = next(iter(row.metrics.items()))
            groups.append(f"{row.task}, {metric}")
            ours.append(_percent(value))
            errors.append(_percent(error))
            counted.append(_percent(row.counted(metric)))
        bars = Bars(
            groups,
            [(os.path.basename(self.checkpoint), ours), ("n-grams", counted)],
            [errors, [0.0] * len(groups)],
        )
        return Picture("suite", "Metrics x 100, with one standard error", bars=bars)


def _hundred(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.2f}"


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _json(row: Row) -> dict[str, Any]:
    metrics = {
        metric: {
            "value": value,
            "standard_error": error,
            "n_grams": row.counted(metric),
        }
        for metric, (value, error) in row.metrics.items()
    }
    return {
        "task": row.task,
        "split": row.split,
        "protocol": row.protocol,
        "rows": row.rows,
        "of_rows": row.of_rows,
        "metrics": metrics,
        "seconds": row.seconds,
        "n_grams_learnt_from": row.baseline.learnt_from if row.baseline else None,
        "trained_on_it": row.learnt,
    }
