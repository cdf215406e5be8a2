# SPDX-License-Identifier: Apache-2.0
"""The optimizers that OPTIMIZER may name."""

from __future__ import annotations

from kcmoe.config.gin_files import Macros
from kcmoe.config.training import AverageConfig
from kcmoe.errors import UserError, near_misses
from kcmoe.training.optimizers.adafactor import Adafactor
from kcmoe.training.optimizers.adamw import AdamW
from kcmoe.training.optimizers.averaged import Averaged
from kcmoe.training.optimizers.base import Optimizer

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adafactor": Adafactor,
    "adamw": AdamW,
}


def optimizer(name: str, macros: Macros) -> Optimizer:
    """The optimizer called `name`, with its settings from `macros`; EMA_DECAY puts an average of the weights
    beside it.

    Raises:
      UserError: for a name that none has, or settings that are missing or wrong.
    """
    if name not in OPTIMIZERS:
        raise UserError(
            f"OPTIMIZER = {name!r}, but it is one of {', '.join(OPTIMIZERS)}."
            f"{near_misses(name, OPTIMIZERS)}"
        )
    chosen = OPTIMIZERS[name].from_macros(macros)
    decay = AverageConfig.from_macros(macros).decay
    return chosen if decay is None else Averaged(chosen, decay)
