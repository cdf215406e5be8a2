# SPDX-License-Identifier: Apache-2.0
"""Settings that name a task, change one, or describe one of the user's own.

What a task is, and the tasks that exist, stand in `kcmoe.tasks`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from kcmoe.config.fields import GinConfig, macro


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSettings(GinConfig):
    """The `TASK_…` macros: fields of a task of one's own, or changes to a listed one."""

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
        "TASK_TARGET_STEP",
        default=None,
        help="answers are numbers, rounded to this step",
    )
    target_range: Any = macro(
        "TASK_TARGET_RANGE", default=None, help="lowest and highest answer, e.g. (0.0, 5.0)"
    )
    metrics: Any = macro(
        "TASK_METRICS", default=None, help="names from METRICS of kcmoe.tasks.types"
    )
    id_column: str | None = macro(
        "TASK_ID_COLUMN", default=None, help="column that names an example"
    )
    holdout: float | None = macro(
        "TASK_HOLDOUT",
        least=0,
        below=1,
        default=None,
        help="share of train kept as validation where none is given",
    )
    keep_empty: bool | None = macro(
        "TASK_KEEP_EMPTY",
        default=None,
        help="True where empty inputs, and texts that are NA or nan, are examples; else left out and counted",
    )
    encoding: str | None = macro(
        "TASK_ENCODING",
        default=None,
        help="of text files, e.g. 'cp949' or 'utf-8,old*.tsv=cp949'; utf-8 unless said",
    )
