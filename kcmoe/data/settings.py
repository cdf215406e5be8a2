# SPDX-License-Identifier: Apache-2.0
"""The data macros of a run, and the batches they describe."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from kcmoe.config.fields import GinConfig, macro
from kcmoe.config.gin_files import Macros
from kcmoe.data.pipeline import Batches, EvalBatches, eval_batches, train_batches
from kcmoe.errors import UserError
from kcmoe.tasks.registry import Task, get_task
from kcmoe.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(GinConfig):
    """Where the data is and how it is read; none of it changes what a row number means."""

    data_dir: str = macro("DATA_DIR", default="data", help="folder or bucket of the task's files")
    vocabulary_file: str | None = macro(
        "VOCABULARY_FILE", default=None, help="SentencePiece model; None is the shipped one"
    )
    vocabulary_sha256: str | None = macro(
        "VOCABULARY_SHA256", default=None, help="recorded in config.gin by `kcmoe train`, not set"
    )
    cache_dir: str | None = macro(
        "CACHE_DIR", default=None, help="where token ids are kept; None is the user's cache folder"
    )
    strict: bool = macro(
        "DATA_STRICT", default=True, help="stop at damaged data; False leaves it out and counts it"
    )
    pack: bool = macro("PACK", default=False, help="several examples to a row, with segment ids")
    workers: int | None = macro(
        "DATA_WORKERS",
        default=None,
        help="processes that make batches ahead; None chooses, 0 is a thread",
    )

    def check(self) -> None:
        if self.workers is not None and not 0 <= self.workers <= 256:
            raise UserError(
                f"DATA_WORKERS = {self.workers}, but it is a number of processes, 0 to 256"
            )

    @property
    def num_workers(self) -> int:
        """DATA_WORKERS; unless said, a process of its own where there are cores to spare."""
        if self.workers is not None:
            return self.workers
        # One process makes several million tokens a second, more than one machine trains on.
        return 1 if (os.cpu_count() or 1) > 4 else 0


def training_batches(macros: Macros, vocabulary: Vocabulary | None = None) -> Batches:
    """The training batches of a run.

    Args:
      macros: MIXTURE_OR_TASK_NAME, TASK_FEATURE_LENGTHS, BATCH_SIZE, RANDOM_SEED and those of `DataConfig`.
      vocabulary: read from VOCABULARY_FILE if not given.

    Raises:
      UserError: for anything missing or unfit.
    """
    config = DataConfig.from_macros(macros)
    return train_batches(
        get_task(macros),
        vocabulary or Vocabulary(config.vocabulary_file),
        macros.require("TASK_FEATURE_LENGTHS"),
        macros.require("BATCH_SIZE"),
        macros.require("RANDOM_SEED"),
        config.pack,
        config.data_dir,
        strict=config.strict,
        cache_dir=config.cache_dir,
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
    config = DataConfig.from_macros(macros)
    lengths: Any = macros.require("TASK_FEATURE_LENGTHS")
    return eval_batches(
        task,
        split,
        vocabulary or Vocabulary(config.vocabulary_file),
        lengths,
        batch_size,
        config.data_dir,
        strict=config.strict,
        cache_dir=config.cache_dir,
        max_batches=max_batches,
        spread=True,
    )
