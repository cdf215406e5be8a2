# SPDX-License-Identifier: Apache-2.0
"""The `TASK_…` macros, with which gin describes a task of one's own or changes a listed one."""

from __future__ import annotations

import dataclasses
from typing import Any

from kcmoe.config.fields import GinConfig, macro
from kcmoe.tasks.types import METRICS, SPLITS, cell_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSettings(GinConfig):
    """The `TASK_…` macros: fields of a task of one's own, or changes to a listed task."""

    name: str = macro("MIXTURE_OR_TASK_NAME", help="the task, or a name for the mixture in MIXTURE")
    mixture: dict | None = macro(
        "MIXTURE", default=None, help="task -> weight, e.g. {'pretrain': 9.0, 'my_corpus': 1.0}"
    )
    train_files: Any = macro(
        "TASK_TRAIN_FILES",
        default=None,
        help="a path or several, wildcards allowed, below DATA_DIR",
    )
    validation_files: Any = macro(
        "TASK_VALIDATION_FILES", default=None, help="the same, validation"
    )
    test_files: Any = macro("TASK_TEST_FILES", default=None, help="the same, test")
    text_column: str | None = macro(
        "TASK_TEXT_COLUMN", default=None, help="the text; makes it a span corruption task"
    )
    prompt: str | None = macro(
        "TASK_PROMPT", default=None, help="the input, with {column} where a column goes"
    )
    target: str | None = macro("TASK_TARGET_COLUMN", default=None, help="column of the answer")
    labels: dict | None = macro(
        "TASK_LABELS", default=None, help="value in the target column -> word to generate"
    )
    multi_label: bool | None = macro(
        "TASK_MULTI_LABEL",
        default=None,
        help="True where a row has several labels: a list, or a text with commas between them",
    )
    target_step: float | None = macro(
        "TASK_TARGET_STEP", default=None, help="answers are numbers, rounded to this step"
    )
    target_range: Any = macro(
        "TASK_TARGET_RANGE", default=None, help="lowest and highest answer, e.g. (0.0, 5.0)"
    )
    metrics: Any = macro("TASK_METRICS", default=None, help=f"some of {', '.join(METRICS)}")
    id_column: str | None = macro(
        "TASK_ID_COLUMN", default=None, help="column that names an example"
    )
    holdout: float | None = macro(
        "TASK_HOLDOUT", default=None, help="share of train kept as validation where none is given"
    )
    encoding: str | None = macro(
        "TASK_ENCODING", default=None, help="of text files, e.g. 'cp949'; utf-8 unless said"
    )

    def task_fields(self) -> dict[str, Any]:
        """Fields of `Task` that are set."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("name", "mixture") and getattr(self, field.name) is not None
        }
        files = {s: _names(fields.pop(f"{s}_files")) for s in SPLITS if f"{s}_files" in fields}
        if "labels" in fields:
            fields["labels"] = {cell_text(value): word for value, word in fields["labels"].items()}
        if "metrics" in fields:
            fields["metrics"] = _names(fields["metrics"])
        return fields | ({"files": files} if files else {})


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
