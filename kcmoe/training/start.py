# SPDX-License-Identifier: Apache-2.0
"""Where a run begins: with which weights, which optimizer state, at which step, and where in its data."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from kcmoe import checkpoint as checkpoints
from kcmoe import tree
from kcmoe.checkpoint import run_config, shipped
from kcmoe.checkpoint.reading import restore_parameters
from kcmoe.errors import UserError
from kcmoe.io.remote import Address, Place
from kcmoe.model.interface import Flat
from kcmoe.training import state as states
from kcmoe.training.inputs import Inputs, StepBatches
from kcmoe.training.run_folder import RunFolder, read_extra
from kcmoe.training.settings import Settings
from kcmoe.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
      step: steps done before it, pretraining included.
      checkpoint: where its weights are from; "" for fresh ones.
      resumed: whether that is a checkpoint of the run itself, so that its data go on, too.
      optimizer_kept: whether the optimizer's state is from there as well.
    """

    step: int = 0
    checkpoint: str = ""
    resumed: bool = False
    optimizer_kept: bool = False

    def batches(self, inputs: Inputs) -> StepBatches:
        """The batches, standing where the checkpoint's data stood; a new run begins its data at the start."""
        batches = inputs.batches
        if self.resumed:
            position = read_extra(self.checkpoint).get("data_position")
            return batches.resume(position) if position else batches
        return batches.resume({**batches.position(0), "step": self.step})


def find(
    settings: Settings, folder: RunFolder, shardings: TrainState, vocabulary: Any
) -> tuple[Start, TrainState | None]:
    """Where the run begins, and the state to go on from, None for a fresh one.

    Precedence:
      1. The newest checkpoint in MODEL_DIR: the run goes on.
      2. INITIAL_CHECKPOINT_PATH: its weights, optimizer state and step, as in T5X.
      3. None: fresh weights from RANDOM_SEED, step 0.

    Raises:
      UserError: for weights of another vocabulary or other sizes, damaged ones, or where nothing is left to
        do after the steps of INITIAL_CHECKPOINT_PATH.
    """
    run = settings.run
    own = folder.all()
    newest = own[-1] if own else None
    initial = run.initial_checkpoint_path
    if newest is None and initial is None:
        return Start(), None
    origin = str(newest or shipped.resolve(str(initial)))
    if vocabulary:
        run_config.check_vocabulary(origin, vocabulary)
    if newest is None:
        first_step = checkpoints.open_checkpoint(origin).step
        if run.train_steps <= first_step:
            raise UserError(
                f"TRAIN_STEPS = {run.train_steps} counts from step 0, and "
                f"{run.initial_checkpoint_path} is already at step {first_step}; for N more steps "
                f"set TRAIN_STEPS to {first_step} + N, so for {run.train_steps} more "
                f"--gin.TRAIN_STEPS={first_step + run.train_steps}"
            )
    try:
        state, kept = restore(origin, shardings, settings)
        if newest:
            read_extra(newest)
    except UserError as error:
        raise UserError(f"{error}{_way_on(newest, own[:-1], shardings, settings)}") from error
    return Start(int(state.step), origin, newest is not None, kept), state


def _way_on(
    damaged: Place | None, older: Sequence[Place], shardings: TrainState, settings: Settings
) -> str:
    """What to do where the newest checkpoint of a run cannot be used; "" where it is not the run's."""
    if damaged is None:
        return ""
    move = "gcloud storage mv" if isinstance(damaged, Address) else "mv"
    for path in reversed(older):
        with contextlib.suppress(UserError):
            restore(str(path), shardings, settings)
            read_extra(path)
            return (
                f". {path} before it is sound: to go on from there, move the damaged one away, "
                f"{move} {damaged} {damaged}.damaged"
            )
    return ". No checkpoint before it in this MODEL_DIR is sound: begin anew in another MODEL_DIR"


def restore(path: str, shardings: TrainState, settings: Settings) -> tuple[TrainState, bool]:
    """The train state saved at `path`, every leaf checked, on the devices that `shardings` say.

    Returns:
      The state, and whether its optimizer state is from `path` too; where that has none
      (safetensors) or that of another optimizer, it is a fresh one at the checkpoint's step, and the
      weights are the averages that it may have kept.

    Raises:
      UserError: listing all leaves that are missing, misshapen or damaged.
    """
    expected = states.to_flat(states.state_shapes(settings.model, settings.optimizer))
    placing = states.to_flat(shardings)
    reader = checkpoints.open_checkpoint(path)
    here = reader.scan()[0]
    same_optimizer = _recorded(path).get("OPTIMIZER") in (None, settings.run.optimizer)
    kept = same_optimizer and tree.STEP in here and _slot_names(here) == _slot_names(expected)
    restored: Flat
    if kept and _averages(here) == _averages(expected):
        return states.from_flat(checkpoints.restore(reader, expected, sharding=placing)), True
    if kept:  # a run may begin to average, or stop it; all else is there
        restored = checkpoints.restore(reader, expected, [_NO_AVERAGE], sharding=placing)
    else:
        restored = restore_parameters(reader, expected, placing)
    fresh = {
        leaf: np.zeros(shape.shape, shape.dtype)
        for leaf, shape in expected.items()
        if leaf not in restored
    }
    fresh[tree.STEP] = np.asarray(reader.step, np.int32)
    placed = {
        leaf: jax.make_array_from_callback(value.shape, placing[leaf], value.__getitem__)
        for leaf, value in fresh.items()
    }
    return states.from_flat({**placed, **restored}), kept


_NO_AVERAGE = rf"(?!.*/({tree.AVERAGE}|{tree.AVERAGED})$)"


def _slot_names(paths: Iterable[str]) -> set[str]:
    """What an optimizer calls its slots, from the paths of a flat train state; averages are no part of it."""
    optimizers = (path for path in paths if tree.is_optimizer(path) and not tree.is_average(path))
    return {path.rpartition("/")[2] for path in optimizers}


def _averages(paths: Iterable[str]) -> set[str]:
    return {path for path in paths if tree.is_average(path)}


def _recorded(checkpoint: str) -> dict[str, Any]:
    """The settings of the run that wrote the checkpoint, {} where they cannot be read from here."""
    try:
        return run_config.recorded(checkpoint)
    except UserError:
        return {}


def other_factors(start: Start, settings: Settings) -> list[str]:
    """One warning per factor of the gradients (see `update`) that was another where the run starts from.

    The second moments restored from there hold its square.
    """
    memory = settings.optimizer.remembered_steps(start.step)
    if not start.optimizer_kept or not memory:
        return []
    recorded = _recorded(start.checkpoint)
    run, warnings = settings.run, []
    for name, gradients, now in (
        ("NUM_MICROBATCHES", "gradients", run.microbatches),
        ("NUM_EXPERT_PARTITIONS", "gradients of experts", run.num_expert_partitions),
    ):
        before = recorded.get(name, now) or 1
        if before == now or (name == "NUM_EXPERT_PARTITIONS" and not settings.model.is_sparse):
            continue
        if before > now:
            effect = f"large, which divides the learning rate by up to {before / now:g}"
        else:
            effect = f"small, which multiplies the learning rate by up to {now / before:g}"
        warnings.append(
            f"warning     {name} was {before} where {start.checkpoint} was trained and is {now} here: it "
            f"multiplies {gradients}, so their second moments start "
            f"{max(before / now, now / before) ** 2:g} times too {effect}, for about {memory:,.0f} "
            f"steps; set {name} = {before} to avoid it"
        )
    return warnings
