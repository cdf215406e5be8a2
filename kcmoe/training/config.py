# SPDX-License-Identifier: Apache-2.0
"""Settings of a training run; macro names are T5X's where it has one. Values stand in
`configs/`."""

from __future__ import annotations

import dataclasses

from kcmoe.config import GinConfig, macro
from kcmoe.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(GinConfig):
    """What to train on, for how long, and what to keep."""

    model_dir: str = macro("MODEL_DIR", help="folder of checkpoints, records and config.gin")
    train_steps: int = macro(
        "TRAIN_STEPS",
        help="last step, counted from 0; includes the steps of INITIAL_CHECKPOINT_PATH",
    )
    batch_size: int = macro("BATCH_SIZE", help="rows per step")
    task: str = macro("MIXTURE_OR_TASK_NAME", help="what to train on; see configs/tasks")
    lengths: dict[str, int] = macro(
        "TASK_FEATURE_LENGTHS", help="{'inputs': tokens, 'targets': tokens}, longer ones are cut"
    )
    initial_checkpoint_path: str | None = macro(
        "INITIAL_CHECKPOINT_PATH",
        help="checkpoint to start from: weights, optimizer state, step",
        default=None,
    )
    random_seed: int = macro("RANDOM_SEED", help="seed of initial weights, data order and dropout")
    num_microbatches: int | None = macro(
        "NUM_MICROBATCHES",
        help="parts a batch is computed in to save memory; None is 1",
        default=None,
    )
    num_expert_partitions: int = macro(
        "NUM_EXPERT_PARTITIONS",
        help="most devices that experts are divided over; scales their gradients",
    )
    eval_period: int = macro("EVAL_PERIOD", help="steps between evaluations; 0 is never")
    eval_steps: int = macro("EVAL_STEPS", help="batches of held-out data per evaluation")
    checkpoint_period: int = macro("CHECKPOINT_PERIOD", help="steps between checkpoints")
    checkpoints_to_keep: int | None = macro(
        "CHECKPOINTS_TO_KEEP",
        help="newest checkpoints kept, the best one apart; None keeps all",
        default=None,
    )
    freeze: tuple[str, ...] = macro(
        "FREEZE", help="path patterns of parameters that stay as they are", default=()
    )

    @property
    def microbatches(self) -> int:
        """NUM_MICROBATCHES, T5X's None being 1."""
        return self.num_microbatches or 1

    @property
    def tokens_per_step(self) -> int:
        """Positions of one batch, inputs and targets, padding included."""
        return self.batch_size * (self.lengths["inputs"] + self.lengths["targets"])

    def check(self) -> None:
        """See `GinConfig.check`."""
        for field, lowest in [
            ("train_steps", 1), ("batch_size", 1), ("eval_period", 0), ("eval_steps", 1),
            ("checkpoint_period", 1), ("checkpoints_to_keep", 1), ("num_microbatches", 1),
            ("num_expert_partitions", 1), ("random_seed", 0),
        ]:  # fmt: skip
            value = getattr(self, field)
            if value is not None and value < lowest:
                raise UserError(f"{field.upper()} = {value}, but it must be at least {lowest}")
        for feature in ("inputs", "targets"):
            length = self.lengths.get(feature)
            if not isinstance(length, int) or length < 1:
                raise UserError(
                    f"TASK_FEATURE_LENGTHS = {self.lengths!r} needs '{feature}': a number of tokens"
                )
