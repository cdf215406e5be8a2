# SPDX-License-Identifier: Apache-2.0
"""All settings of a run in one place, each part checked, then the parts against each other."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from kcmoe import checkpoint as checkpoints
from kcmoe import fits
from kcmoe.checkpoint.run_config import CONFIG_FILE
from kcmoe.checkpoint.storage import step_of
from kcmoe.config import fields as configs
from kcmoe.config import gin_files
from kcmoe.config.gin_files import Macros
from kcmoe.config.model import ModelConfig
from kcmoe.config.training import (
    LossConfig,
    ScheduleConfig,
    TeacherConfig,
    TrainConfig,
    counted_from,
    counts_from_start,
)
from kcmoe.errors import UserError
from kcmoe.io.remote import is_remote
from kcmoe.training import places
from kcmoe.training.optimizers.base import Optimizer
from kcmoe.training.optimizers.registry import optimizer

INITIAL = "INITIAL_CHECKPOINT_PATH"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `kcmoe train` was asked to do; `macros` is what goes into config.gin."""

    macros: Macros
    run: TrainConfig
    model: ModelConfig
    losses: LossConfig
    schedule: ScheduleConfig
    optimizer: Optimizer
    teacher: TeacherConfig

    @classmethod
    def from_macros(cls, macros: Macros) -> Settings:
        """Raises `UserError` for a name nothing knows, a missing value, or values that clash.

        Where TRAIN_STEPS is None it is counted here, so that config.gin records it.
        """
        configs.check_all(macros)
        macros = count_steps(macros)
        run = TrainConfig.from_macros(macros)
        settings = cls(
            macros=macros,
            run=run,
            model=ModelConfig.from_macros(macros),
            losses=LossConfig.from_macros(macros),
            schedule=ScheduleConfig.from_macros(macros),
            optimizer=optimizer(run.optimizer, macros),
            teacher=TeacherConfig.from_macros(macros),
        )
        settings.check()
        return settings

    def check(self) -> None:
        """Raises `UserError` for parts that do not go together."""
        run, model = self.run, self.model
        if model.is_sparse:
            fits.check_expert_partitions(run.num_expert_partitions, model.num_experts)
        fits.check_batch(run.batch_size, run.microbatches)
        if self.teacher.teacher is not None and self.losses.label_smoothing:
            raise UserError(
                f"TEACHER and LABEL_SMOOTHING = {self.losses.label_smoothing} are two ways to soften the "
                "targets; set LABEL_SMOOTHING = 0.0"
            )


def count_steps(macros: Macros) -> Macros:
    """`macros` with TRAIN_STEPS: where it is None, FINETUNE_STEPS after INITIAL_CHECKPOINT_PATH's steps.

    Raises:
      UserError: if neither number is set, or INITIAL_CHECKPOINT_PATH is required and not set, or cannot
        be read.
    """
    if not counts_from_start(macros):
        return macros
    path = macros.get(INITIAL) or _begun(macros).get(INITIAL)
    if not path:
        start = 0
        if INITIAL in macros.required:
            macros.require(INITIAL)
    else:
        named = step_of(path)
        start = checkpoints.open_checkpoint(path).step if named is None else named
    return counted_from(macros, start)


def _begun(macros: Macros) -> Mapping[str, Any]:
    """What MODEL_DIR was begun with; {} for a new one."""
    model_dir = str(macros.get("MODEL_DIR") or "")
    place = places.find(model_dir) if is_remote(model_dir) else None  # holds what it has fetched
    config = os.path.join(place.records if place else model_dir, CONFIG_FILE)
    if not os.path.exists(config):
        return {}
    return gin_files.parse([os.path.abspath(config)], foreign=True, includes=False)
