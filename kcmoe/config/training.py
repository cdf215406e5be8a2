# SPDX-License-Identifier: Apache-2.0
"""Settings of a training run; macro names are T5X's where it has one. Values stand in `configs/`.

Nothing here needs JAX, so that every verb can check names without waiting for it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from kcmoe import fits
from kcmoe.config.fields import GinConfig, macro
from kcmoe.config.gin_files import Macros
from kcmoe.errors import UserError, near_misses

MOST_STEPS = 2**31 - 1  # the step is an int32 in every checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(GinConfig):
    """What to train on, for how long, and what to keep."""

    model_dir: str = macro(
        "MODEL_DIR", help="folder or bucket of checkpoints, records and config.gin"
    )
    train_steps: int = macro(
        "TRAIN_STEPS",
        least=1,
        most=MOST_STEPS,
        help="last step, counted from 0; includes the steps of INITIAL_CHECKPOINT_PATH",
    )
    finetune_steps: int | None = macro(
        "FINETUNE_STEPS",
        least=1,
        most=MOST_STEPS,
        help="steps after those of INITIAL_CHECKPOINT_PATH; used where TRAIN_STEPS is None",
        default=None,
    )
    batch_size: int = macro("BATCH_SIZE", least=1, most=1 << 20, help="rows per step")
    task: str = macro("MIXTURE_OR_TASK_NAME", help="what to train on; see configs/tasks")
    lengths: dict[str, int] = macro(
        "TASK_FEATURE_LENGTHS",
        least=2,
        most=1 << 20,
        help="{'inputs': tokens, 'targets': tokens}, longer ones are cut",
    )
    initial_checkpoint_path: str | None = macro(
        "INITIAL_CHECKPOINT_PATH",
        help="checkpoint to start from: weights, optimizer state, step; 'tiny' is the model that ships",
        default=None,
    )
    optimizer: str = macro(
        "OPTIMIZER", help="what turns gradients into updates: adafactor (as T5X) or adamw"
    )
    random_seed: int = macro(
        "RANDOM_SEED",
        least=0,
        most=2**32 - 1,
        help="seed of initial weights, data order and dropout",
    )
    num_microbatches: int | None = macro(
        "NUM_MICROBATCHES",
        least=1,
        most=1 << 20,
        help="parts a batch is computed in to save memory; None is 1",
        default=None,
    )
    num_expert_partitions: int = macro(
        "NUM_EXPERT_PARTITIONS",
        least=1,
        most=1 << 20,
        help="most devices that experts are divided over; scales their gradients",
    )
    num_model_partitions: int | None = macro(
        "NUM_MODEL_PARTITIONS",
        least=1,
        most=1 << 20,
        help="devices that share each matrix, its heads or its hidden width; None is 1",
        default=None,
    )
    parameter_partitioning_dims: Literal[1, 2] = macro(
        "PARAMETER_PARTITIONING_DIMS",
        help="2 also divides parameters and optimizer state over the devices that rows are divided over",
        default=1,
    )
    eval_period: int = macro(
        "EVAL_PERIOD", least=0, most=MOST_STEPS, help="steps between evaluations; 0 is never"
    )
    eval_steps: int = macro(
        "EVAL_STEPS", least=1, most=MOST_STEPS, help="batches of held-out data per evaluation"
    )
    checkpoint_period: int = macro(
        "CHECKPOINT_PERIOD", least=1, most=MOST_STEPS, help="steps between checkpoints"
    )
    checkpoints_to_keep: int | None = macro(
        "CHECKPOINTS_TO_KEEP",
        least=1,
        most=MOST_STEPS,
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
    def model_partitions(self) -> int:
        """NUM_MODEL_PARTITIONS, T5X's None being 1."""
        return self.num_model_partitions or 1

    @property
    def tokens_per_step(self) -> int:
        """Positions of one batch, inputs and targets, padding included."""
        return self.batch_size * (self.lengths["inputs"] + self.lengths["targets"])

    def check(self) -> None:
        """See `GinConfig.check`."""
        fits.check_lengths(self.lengths)


def counts_from_start(macros: Macros) -> bool:
    """Whether TRAIN_STEPS is left to FINETUNE_STEPS, which counts from where the run starts.

    Raises:
      UserError: if neither says how long to train.
    """
    if macros.get("TRAIN_STEPS") is not None:
        return False
    if macros.get("FINETUNE_STEPS") is None:
        raise UserError(
            "neither TRAIN_STEPS nor FINETUNE_STEPS is set; name a task file that sets FINETUNE_STEPS "
            "(--task=NAME, configs/tasks), or add --gin.FINETUNE_STEPS=VALUE"
        )
    return True


def counted_from(macros: Macros, start_step: int) -> Macros:
    """`macros` with TRAIN_STEPS, FINETUNE_STEPS after `start_step`, where it has none."""
    if not counts_from_start(macros):
        return macros
    steps = macros["FINETUNE_STEPS"]
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise UserError(
            f"{macros.where('FINETUNE_STEPS')}: FINETUNE_STEPS = {steps!r}, but it must be a whole number"
        )
    return macros.replace(TRAIN_STEPS=start_step + steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(GinConfig):
    """Weights of the parts of the loss."""

    z_loss: float = macro(
        "Z_LOSS", least=0, most=1000, help="weight of log(Z)^2 of the output logits"
    )
    label_smoothing: float = macro(
        "LABEL_SMOOTHING", least=0, below=1, help="probability spread over wrong targets"
    )
    normalizing_factor: Literal["NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS"] = macro(
        "LOSS_NORMALIZING_FACTOR", help="what the summed loss is divided by"
    )
    aux_loss_factor: float = macro(
        "AUX_LOSS_FACTOR", least=0, most=1000, help="weight of the load balance loss"
    )
    router_z_loss_factor: float = macro(
        "ROUTER_Z_LOSS_FACTOR", least=0, most=1000, help="weight of the router z-loss"
    )


# Factor of the learning rate -> fields of `ScheduleConfig` it reads, besides those that are always there;
# `kcmoe.training.schedule` says what each computes.
FACTORS = {
    "constant": (),
    "linear_warmup": (),
    "linear_decay": ("decay_factor",),
    "rsqrt_decay": (),
    "rsqrt_normalized_decay": (),
    "decay_every": ("decay_factor", "steps_per_decay"),
    "cosine_decay": ("steps_per_cycle",),
    "linear_cooldown": ("train_steps", "cooldown_steps"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig(GinConfig):
    """Learning rate as a function of the step, counted over pretraining and fine-tuning together."""

    factors: str = macro(
        "LEARNING_RATE_FACTORS", help="factors joined by *: constant, linear_warmup, rsqrt_decay, …"
    )
    learning_rate: float = macro(
        "LEARNING_RATE",
        above=0,
        most=1000,
        help="value of 'constant' and, at its top, of 'linear_decay'",
    )
    warmup_steps: int = macro(
        "WARMUP_STEPS",
        least=1,
        most=MOST_STEPS,
        help="steps of 'linear_warmup'; every decay but 'decay_every' begins after them",
    )
    decay_factor: float | None = macro(
        "DECAY_FACTOR",
        above=0,
        most=1,
        default=None,
        help="'decay_every' multiplies by it; 'linear_decay' falls by it in each step",
    )
    steps_per_decay: int | None = macro(
        "STEPS_PER_DECAY",
        least=1,
        most=MOST_STEPS,
        default=None,
        help="steps between two multiplications of 'decay_every'",
    )
    steps_per_cycle: int | None = macro(
        "STEPS_PER_CYCLE",
        least=1,
        most=MOST_STEPS,
        default=None,
        help="steps in which 'cosine_decay' falls from 1 to 0",
    )
    cooldown_steps: int | None = macro(
        "COOLDOWN_STEPS",
        least=1,
        most=MOST_STEPS,
        default=None,
        help="last steps, in which 'linear_cooldown' falls to 0",
    )
    train_steps: int | None = macro(
        "TRAIN_STEPS",
        least=1,
        most=MOST_STEPS,
        default=None,
        help="last step, where 'linear_cooldown' ends",
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The factors, e.g. ("constant", "rsqrt_decay")."""
        return tuple(name.strip() for name in self.factors.split("*"))

    def check(self) -> None:
        """See `GinConfig.check`."""
        for name in self.names:
            if name not in FACTORS:
                raise UserError(
                    f"LEARNING_RATE_FACTORS has {name!r}, but a factor is one of "
                    f"{', '.join(FACTORS)}.{near_misses(name, FACTORS)}"
                )
            for field in FACTORS[name]:
                if getattr(self, field) is None:
                    raise UserError(
                        f"LEARNING_RATE_FACTORS has {name!r}, which needs {field.upper()}; "
                        f"add --gin.{field.upper()}=VALUE"
                    )
        if "linear_decay" in self.names and {"constant", "linear_warmup"} & set(self.names):
            raise UserError(
                f"LEARNING_RATE_FACTORS = {self.factors!r}: 'linear_decay' has 'constant' and "
                "'linear_warmup' in it already; leave those out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageConfig(GinConfig):
    """Whether a run keeps a moving average of its weights; `kcmoe.training.optimizers.averaged`."""

    decay: float | None = macro(
        "EMA_DECAY",
        above=0,
        below=1,
        default=None,
        help="share of the old average of the weights in each step, e.g. 0.999; None keeps no average",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig(GinConfig):
    """Whether a run learns from another model's answers; `kcmoe.training.teacher`."""

    teacher: str | None = macro(
        "TEACHER",
        default=None,
        help="checkpoint whose probabilities are learnt as well as the targets; 'tiny' is the one that ships",
    )
    weight: float = macro(
        "TEACHER_WEIGHT",
        above=0,
        most=1,
        default=0.5,
        help="share of the teacher's probabilities in the loss, against the targets",
    )
    top: int = macro(
        "TEACHER_TOP",
        least=1,
        most=1024,
        default=16,
        help="likeliest pieces of the teacher at each position; their probabilities are made to sum to 1",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafactorConfig(GinConfig):
    """What Adafactor leaves to choose."""

    decay_rate: float = macro(
        "DECAY_RATE", above=0, most=1, help="second-moment decay at step t is 1 - t^-DECAY_RATE"
    )
    step_offset: int = macro(
        "STEP_OFFSET", least=0, most=MOST_STEPS, help="step that counts as the first for the decay"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig(GinConfig):
    """What AdamW leaves to choose; `kcmoe.training.optimizers.adamw` says what each does."""

    beta1: float = macro("ADAMW_BETA1", least=0, below=1, help="share of the old first moment")
    beta2: float = macro("ADAMW_BETA2", least=0, below=1, help="share of the old second moment")
    weight_decay: float = macro(
        "ADAMW_WEIGHT_DECAY", least=0, most=1, help="decay of kernels per unit of the rate"
    )
    clip_norm: float = macro(
        "ADAMW_CLIP_NORM", above=0, most=1e9, help="longest gradient, all parameters together"
    )
