# SPDX-License-Identifier: Apache-2.0
"""All settings of a run in one place, each part checked, then the parts against each other."""

from __future__ import annotations

import dataclasses

from kcmoe.config import fields as configs
from kcmoe.config.gin_files import Macros
from kcmoe.config.model import ModelConfig
from kcmoe.config.training import LossConfig, ScheduleConfig, TrainConfig
from kcmoe.errors import UserError
from kcmoe.training.optimizers.base import Optimizer
from kcmoe.training.optimizers.registry import optimizer


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `kcmoe train` was asked to do; `macros` is what goes into config.gin."""

    macros: Macros
    run: TrainConfig
    model: ModelConfig
    losses: LossConfig
    schedule: ScheduleConfig
    optimizer: Optimizer

    @classmethod
    def from_macros(cls, macros: Macros) -> Settings:
        """Raises `UserError` for a name nothing knows, a missing value, or values that clash."""
        configs.check_names(macros)
        run = TrainConfig.from_macros(macros)
        settings = cls(
            macros=macros,
            run=run,
            model=ModelConfig.from_macros(macros),
            losses=LossConfig.from_macros(macros),
            schedule=ScheduleConfig.from_macros(macros),
            optimizer=optimizer(run.optimizer, macros),
        )
        settings.check()
        return settings

    def check(self) -> None:
        """Raises `UserError` for parts that do not go together."""
        run, model = self.run, self.model
        if model.is_sparse and run.num_expert_partitions > model.num_experts:
            raise UserError(
                f"NUM_EXPERT_PARTITIONS = {run.num_expert_partitions} is more than "
                f"NUM_EXPERTS = {model.num_experts}"
            )
        if run.batch_size % run.microbatches:
            raise UserError(
                f"BATCH_SIZE = {run.batch_size} does not divide by NUM_MICROBATCHES = "
                f"{run.microbatches}; set NUM_MICROBATCHES to a divisor of {run.batch_size}"
            )

    def check_vocabulary(self, path: str, size: int) -> None:
        """Raises `UserError` if the vocabulary has pieces that the embedding has no rows for."""
        if size > self.model.num_embeddings:
            raise UserError(
                f"vocabulary {path} has {size:,} pieces, but NUM_EMBEDDINGS = "
                f"{self.model.num_embeddings:,}; set NUM_EMBEDDINGS to at least {size:,} (a "
                "multiple of 128 is fast) or VOCABULARY_FILE to a smaller vocabulary"
            )
