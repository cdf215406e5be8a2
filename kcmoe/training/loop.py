# SPDX-License-Identifier: Apache-2.0
"""The train loop, to be read from top to bottom.

It knows arrays and steps; text is `inputs`' business, the update `step`'s, files `checkpointing`'s
and `records`'. Step N is the N-th update; checkpoint N holds the state after it, records of step N
describe it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from kcmoe import checkpoint as checkpoints_lib
from kcmoe import fits
from kcmoe.checkpoint.run_config import DIGEST, check_vocabulary
from kcmoe.config.gin_files import Macros
from kcmoe.errors import UserError
from kcmoe.model import kept_memory
from kcmoe.training import model_dir as model_dirs
from kcmoe.training import programs as programs_lib
from kcmoe.training import report, sharding
from kcmoe.training import state as states
from kcmoe.training.checkpointing import (
    Checkpoints,
    check_space,
    other_factors,
    read_best,
    read_extra,
    restore,
)
from kcmoe.training.freezing import frozen_paths
from kcmoe.training.inputs import Inputs, open_inputs
from kcmoe.training.progress import Progress
from kcmoe.training.records import Recorder, cut_after
from kcmoe.training.settings import Settings
from kcmoe.training.state import TrainState
from kcmoe.training.step_log import StepLog
from kcmoe.training.stopping import StopRequest
from kcmoe.training.validation import TaskMetric, Validation

_INITIAL = "INITIAL_CHECKPOINT_PATH"
# (settings, inputs) -> the task's own validation metrics and their names, or None where it has none
MakeTaskMetric = Callable[[Settings, Inputs], tuple[TaskMetric, tuple[str, ...]] | None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      step: the last step done, which is saved.
      state: the state after it.
      best: what `best.json` holds, None where there never was validation.
      stopped_by: name of the signal that ended it early, "" if it ran to TRAIN_STEPS.
    """

    step: int
    state: TrainState
    best: Mapping[str, Any] | None
    stopped_by: str = ""


def train(
    settings: Settings,
    inputs: Inputs | None = None,
    make_task_metric: MakeTaskMetric | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Outcome:
    """Trains until TRAIN_STEPS or until asked to stop.

    Raises:
      UserError: for what the person can mend; nothing half-written is left.
      NonFiniteError: if loss, gradients or parameters are no finite numbers; the last checkpoint is
      good.
    """
    run = settings.run
    with contextlib.ExitStack() as held:
        # --- Devices: rows of a batch over all of them, experts over some.
        mesh = sharding.make_mesh(settings.model, run.num_expert_partitions)
        fits.check_batch(run.batch_size, run.microbatches, mesh.size)
        shapes = states.state_shapes(settings.model)
        frozen = frozen_paths(run.freeze, shapes.params)
        say(report.devices(mesh))
        say(report.sizes(settings, shapes.params, frozen))
        say(report.step_arithmetic(settings))

        # --- The model directory: begun with the same sizes, and room for a checkpoint.
        folder, changes = model_dirs.open_model_dir(settings.macros)
        checkpoint_bytes = check_space(folder, shapes)
        if checkpoints_lib.latest(folder) is None and _INITIAL in settings.macros.required:
            settings.macros.require(_INITIAL)  # refused before any data are read

        # --- Data: training batches by step, held-out batches for validation.
        inputs = inputs or open_inputs(settings)
        for line in [*inputs.lines, *changes]:
            say(line)

        # --- The state to start from, and the batches that belong to it. From here on we write, so
        # Ctrl-C no longer interrupts.
        stop = held.enter_context(StopRequest())
        held.enter_context(model_dirs.locked(folder, say))
        checkpoints_lib.clean(folder)
        shardings = sharding.state_shardings(mesh, states.to_flat(shapes))
        state, origin, optimizer = _restored(settings, folder, shardings, inputs.vocabulary)
        start_step = int(state.step) if state else 0
        settings.check_start(start_step)
        batches = _batches_from(inputs, origin, start_step)
        say(report.start(start_step, origin, run.random_seed, optimizer=optimizer))
        if origin and optimizer:
            for line in other_factors(origin, start_step, settings):
                say(line)
        cut_after(folder, start_step)
        if state and start_step >= run.train_steps:
            say(f"plan        nothing: TRAIN_STEPS = {run.train_steps:,} is reached")
            return Outcome(start_step, state, read_best(folder))
        model_dirs.write_config(folder, _recorded(settings, inputs))
        say(report.plan(settings, start_step, checkpoint_bytes))

        # --- The compiled update and evaluation, and fresh weights where nothing was restored.
        programs = programs_lib.lower(settings, mesh, shardings, batches.at(start_step), frozen)
        state, update = programs.start(state)
        say(report.memory(update))
        update = kept_memory.keep(update)
        validation = _validation(settings, inputs, mesh, programs.evaluate, make_task_metric)
        chooser = validation.chooser if validation else None
        checkpoints = Checkpoints(folder, run.checkpoints_to_keep, chooser)
        checkpoints.tidy()

        # --- The loop.
        recorder = held.enter_context(contextlib.closing(Recorder(folder)))
        progress = held.enter_context(contextlib.closing(Progress(start_step, run.train_steps)))
        log = StepLog(settings, recorder, progress)
        step = start_step
        upcoming = batches.iterate(start_step, run.train_steps, inputs.workers)
        stopping = bool(stop)
        while step < run.train_steps and not stopping:
            batch = sharding.put_batch(mesh, next(upcoming), run.microbatches)
            state, metrics = update(state, batch)
            step += 1
            log.add(step, metrics)  # waits for the step before, while this one is computed

            stopping = bool(stop)  # asked once per step: a signal from here on waits for the next
            save_due = step == run.train_steps or step % run.checkpoint_period == 0
            eval_due = save_due or (run.eval_period > 0 and step % run.eval_period == 0)
            if not (eval_due or stopping):
                continue
            log.flush()  # nothing is saved that has not been looked at
            kept_memory.give_back()  # evaluating and saving need some, too
            values = None
            if validation and eval_due and not stopping:  # who asks to stop may not wait for it
                values = validation.run(state.params)
                recorder.write("eval", step, values)
                progress.say(report.validation(step, values, validation.chooser.metric))
            if save_due or stopping:
                recorder.sync()
                checkpoints.save(state, batches.position(step), values)
            log.restart_clock()

        stopped_by = stop.name if stopping and step < run.train_steps else ""
        return Outcome(step, state, checkpoints.tidy(), stopped_by)


def _restored(
    settings: Settings, folder: Path, shardings: states.Flat, vocabulary: Any
) -> tuple[TrainState | None, Path | str | None, bool]:
    """The state to go on from, where it is from, and whether its optimizer state is, too.

    Refuses weights of another vocabulary.

    Precedence:
      1. The newest checkpoint in MODEL_DIR: the run goes on.
      2. INITIAL_CHECKPOINT_PATH: its weights, optimizer state and step, as in T5X.
      3. None: fresh weights from RANDOM_SEED, step 0.
    """
    run = settings.run
    newest = checkpoints_lib.latest(folder)
    origin = newest or run.initial_checkpoint_path
    if not origin:
        return None, None, False
    if vocabulary:
        check_vocabulary(str(origin), vocabulary)
    if newest is None:
        first_step = checkpoints_lib.open_checkpoint(origin).step
        if run.train_steps <= first_step:
            raise UserError(
                f"TRAIN_STEPS = {run.train_steps} counts from step 0, and "
                f"{run.initial_checkpoint_path} is already at step {first_step}; for N more steps "
                f"set TRAIN_STEPS to {first_step} + N, so for {run.train_steps} more "
                f"--gin.TRAIN_STEPS={first_step + run.train_steps}"
            )
    state, optimizer = restore(origin, shardings, settings.model)
    return state, origin, optimizer


def _recorded(settings: Settings, inputs: Inputs) -> Macros:
    """What config.gin holds: the settings, and whose rows the embedding has."""
    if not inputs.vocabulary:
        return settings.macros
    return settings.macros.replace(**{DIGEST: inputs.vocabulary.digest})


def _batches_from(inputs: Inputs, origin: Path | str | None, step: int) -> Any:
    """The batches, standing where the checkpoint's data stood; a new run begins its data at the
    start."""
    if isinstance(origin, Path):
        position = read_extra(origin).get("data_position")
        return inputs.batches.resume(position) if position else inputs.batches
    return inputs.batches.resume({**inputs.batches.position(0), "step": step})


def _validation(
    settings: Settings,
    inputs: Inputs,
    mesh: Mesh,
    evaluate: Any,
    make_task_metric: MakeTaskMetric | None,
) -> Validation | None:
    if not inputs.held_out:
        return None
    batches = [
        {name: jax.device_put(x, sharding.named(mesh, "batch")) for name, x in features.items()}
        for features in inputs.held_out
    ]
    made = make_task_metric(settings, inputs) if make_task_metric else None
    task_metric, names = made or (None, ())
    return Validation(evaluate, batches, task_metric, names)
