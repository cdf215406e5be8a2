# SPDX-License-Identifier: Apache-2.0
"""The `TASK_…` macros as fields of a task, each of the type it must have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kcmoe.config.task import TaskSettings
from kcmoe.errors import UserError
from kcmoe.io import given
from kcmoe.io.wording import shown
from kcmoe.tasks.types import SPLITS, label_key


def task_fields(settings: TaskSettings) -> dict[str, Any]:
    """Fields of `Task` that the settings give; `UserError` for values of another type or kind."""
    fields = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name not in ("name", "mixture") and getattr(settings, field.name) is not None
    }
    files = {
        split: _names(f"TASK_{split.upper()}_FILES", fields.pop(f"{split}_files"))
        for split in SPLITS
        if f"{split}_files" in fields
    }
    if "labels" in fields:
        fields["labels"] = _labels(fields["labels"])
    if "metrics" in fields:
        fields["metrics"] = _names("TASK_METRICS", fields["metrics"])
    if "target_range" in fields:
        fields["target_range"] = _range(fields["target_range"])
    if "encoding" in fields:
        given.check_encoding("TASK_ENCODING", fields["encoding"])
    return fields | ({"files": files} if files else {})


def _names(macro: str, value: Any) -> tuple[str, ...]:
    """One text or several, as a tuple; `UserError` for anything else."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) and n for n in names):
        raise UserError(
            f"{macro} = {shown(value)}, but it must be a text in quotes, or a list of texts"
        )
    if not names and macro.endswith("_FILES"):
        raise UserError(
            f"{macro} = [] names no file: leave it out, or set None, where there is none"
        )
    return tuple(names)


def _range(value: Any) -> tuple[float, ...]:
    """Lowest and highest number; `UserError` for anything else."""
    numbers = isinstance(value, list | tuple) and all(map(is_number, value))
    if not numbers or len(value) != 2 or not value[0] < value[1]:
        raise UserError(
            f"TASK_TARGET_RANGE = {shown(value)}, but it must be the lowest and the highest answer, e.g. "
            "(0.0, 5.0)"
        )
    return tuple(map(float, value))


def _labels(given_labels: Mapping[Any, Any]) -> dict[str, str]:
    """Labels as they are compared -> words; `UserError` for what is no label or no word, or one twice."""
    labels: dict[str, str] = {}
    keys: dict[str, Any] = {}
    for value, word in given_labels.items():
        if not isinstance(value, str | int | float) or value != value:
            raise UserError(f"TASK_LABELS has {shown(value)}, but a label is a text or a number")
        if not isinstance(word, str):
            raise UserError(
                f"TASK_LABELS gives {shown(value)} the word {shown(word)}, but a word is a text in quotes"
            )
        if not word.strip():
            raise UserError(
                f"TASK_LABELS gives {shown(value)} the word {shown(word)}, which is empty"
            )
        key = label_key(value)
        if key in labels:
            raise UserError(
                f"TASK_LABELS has {shown(keys[key])} and {shown(value)}, which are the same label"
            )
        labels[key], keys[key] = given.composed(word), value
    return labels


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
