# SPDX-License-Identifier: Apache-2.0
"""All settings of a run in one place, each part checked, then the parts against each other."""

from __future__ import annotations

import dataclasses

from kcmoe import fits
from kcmoe.config import fields as configs
from kcmoe.config.gin_files import Macros
from kcmoe.config.model import ModelConfig
from kcmoe.config.training import AdafactorConfig, LossConfig, ScheduleConfig, TrainConfig
from kcmoe.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `kcmoe train` was asked to do; `macros` is what goes into config.gin."""

    macros: Macros
    run: TrainConfig
    model: ModelConfig
    losses: LossConfig
    schedule: ScheduleConfig
    optimizer: AdafactorConfig

    @classmethod
    def from_macros(cls, macros: Macros) -> Settings:
        """Raises `UserError` for a name nothing knows, a missing value, or values that clash."""
        configs.check_names(macros)
        settings = cls(
            macros=macros,
            run=TrainConfig.from_macros(macros),
            model=ModelConfig.from_macros(macros),
            losses=LossConfig.from_macros(macros),
            schedule=ScheduleConfig.from_macros(macros),
            optimizer=AdafactorConfig.from_macros(macros),
        )
        settings.check()
        return settings

    def check(self) -> None:
        """Raises `UserError` for parts that do not go together."""
        run, model = self.run, self.model
        if model.is_sparse:
            fits.check_expert_partitions(run.num_expert_partitions, model.num_experts)
        fits.check_batch(run.batch_size, run.microbatches)

    def check_start(self, step: int) -> None:
        """Raises `UserError` if STEP_OFFSET is past `step`: the decay of the first update would be
        no number."""
        offset = self.optimizer.step_offset
        if offset > step:
            raise UserError(
                f"STEP_OFFSET = {offset:,} is past step {step:,}, where this run starts; set it to "
                f"{step} or less"
            )
