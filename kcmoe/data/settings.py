# SPDX-License-Identifier: Apache-2.0
"""The batches that the macros of a run describe."""

from __future__ import annotations

from typing import Any

from kcmoe.config.data import DataConfig
from kcmoe.config.gin_files import Macros
from kcmoe.data.pipeline import Batches, EvalBatches, eval_batches, train_batches
from kcmoe.tasks.registry import Task, get_task
from kcmoe.vocabulary import Vocabulary

__all__ = ["DataConfig", "evaluation_batches", "training_batches"]


def training_batches(macros: Macros, vocabulary: Vocabulary | None = None) -> Batches:
    """The training batches of a run.

    Args:
      macros: MIXTURE_OR_TASK_NAME, TASK_FEATURE_LENGTHS, BATCH_SIZE, RANDOM_SEED and those of `DataConfig`.
      vocabulary: read from VOCABULARY_FILE if not given.

    Raises:
      UserError: for anything missing or unfit.
    """
    data = DataConfig.from_macros(macros)
    return train_batches(
        get_task(macros),
        vocabulary or Vocabulary(data.vocabulary_file),
        macros.require("TASK_FEATURE_LENGTHS"),
        macros.require("BATCH_SIZE"),
        macros.require("RANDOM_SEED"),
        data,
    )


def evaluation_batches(
    macros: Macros,
    task: Task,
    split: str,
    batch_size: int,
    vocabulary: Vocabulary | None = None,
    max_batches: int | None = None,
) -> EvalBatches:
    """Batches of one split of `task` under the run's data settings; see `pipeline.eval_batches`."""
    data = DataConfig.from_macros(macros)
    lengths: Any = macros.require("TASK_FEATURE_LENGTHS")
    return eval_batches(
        task,
        split,
        vocabulary or Vocabulary(data.vocabulary_file),
        lengths,
        batch_size,
        data,
        max_batches=max_batches,
        spread=True,
    )
