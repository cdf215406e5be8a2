# SPDX-License-Identifier: Apache-2.0
"""The train loop, to be read from top to bottom.

It knows arrays and steps. Text is in `inputs`, the update in `update`, files in `run_folder`, what is
recorded and shown in `observing`. Step N is the N-th update; checkpoint N holds the
state after it, records of step N describe it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

from kcmoe.checkpoint.run_config import DIGEST
from kcmoe.config.gin_files import Macros
from kcmoe.hosts import agreeing
from kcmoe.hosts.group import ALONE, Hosts
from kcmoe.model.cpu import memory as kept_memory
from kcmoe.training import report, sharding
from kcmoe.training import start as starts
from kcmoe.training import state as states
from kcmoe.training import update as updates
from kcmoe.training.inputs import Inputs, open_inputs
from kcmoe.training.observing import Observer
from kcmoe.training.records import cut_after
from kcmoe.training.run_folder import RunFolder
from kcmoe.training.settings import INITIAL, Settings
from kcmoe.training.state import TrainState, frozen_paths
from kcmoe.training.stopping import StopRequest, StopVote
from kcmoe.training.teacher import open_teacher
from kcmoe.training.validation import MakeTaskMetric, open_validation


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
    hosts: Hosts = ALONE,
) -> Outcome:
    """Trains until TRAIN_STEPS or until asked to stop; on many hosts all call this at once.

    Raises:
      UserError: for what the user can correct; nothing half-written is left.
      NonFiniteError: if loss, gradients or parameters are not finite; the last checkpoint is good.
    """
    run = settings.run
    say = say if hosts.first else (lambda line: None)
    checked: list[str] = []  # said when nothing more can be refused, so that a refusal stands alone
    with contextlib.ExitStack() as held:
        # --- Devices: rows of a batch over all of them, experts over some.
        agreeing.agree(hosts, lambda: agreeing.program(settings.macros))
        mesh = sharding.make_mesh(
            settings.model, run.num_expert_partitions, hosts.devices(), run.model_partitions
        )
        sharding.check(mesh, settings, hosts.count)
        shapes = states.state_shapes(settings.model, settings.optimizer)
        frozen = frozen_paths(run.freeze, shapes.params)
        checked.append(report.devices(mesh))
        checked.append(report.sizes(settings, shapes.params, frozen))
        checked.append(report.step_arithmetic(settings))

        # --- The run's folder: begun with the same sizes, and room for a checkpoint.
        folder = RunFolder(settings.macros, hosts)
        checkpoint_bytes = folder.check_space(states.to_flat(shapes))
        if not folder.all() and INITIAL in settings.macros.required:
            settings.macros.require(INITIAL)  # refused before any data are read

        # --- Data: training batches by step, held-out batches for validation.
        inputs = inputs or open_inputs(settings)
        agreeing.agree(hosts, inputs.facts)
        checked += [*inputs.lines, *folder.changes]

        teacher = open_teacher(settings.macros, settings.model, inputs.vocabulary, mesh)
        if teacher:
            checked.append(report.teacher(teacher.checkpoint, teacher.params, settings))

        # --- The state to start from, and the batches that belong to it. From here on files are written,
        # so Ctrl-C no longer interrupts.
        stop = held.enter_context(StopRequest())
        held.enter_context(folder.locked(say))
        folder.prepare()
        dims = run.parameter_partitioning_dims
        shardings = sharding.state_shardings(mesh, shapes, settings.optimizer, dims)
        start, state = starts.find(settings, folder, shardings, inputs.vocabulary)
        settings.optimizer.check_start(start.step)
        batches = start.batches(inputs)
        checked += [report.start(start, run.random_seed), *starts.other_factors(start, settings)]
        for line in checked:
            say(line)
        if hosts.first:
            cut_after(folder.records, start.step)
            folder.place.publish()  # what has been cut is told from what comes
        if state and start.step >= run.train_steps:
            say(f"plan        nothing: TRAIN_STEPS = {run.train_steps:,} is reached")
            return Outcome(start.step, state, folder.best())
        folder.write_config(_recorded(settings, inputs))
        say(report.plan(settings, start.step, checkpoint_bytes))

        # --- The compiled update and evaluation, and fresh weights where nothing was restored.
        parts = updates.of_run(settings, frozen, mesh)
        rows: Any = sharding.batch_rows(batches.at(start.step), run.batch_size)
        rows = teacher.example(rows) if teacher else rows
        programs = updates.lower(parts, settings.model, mesh, rows, run.microbatches, dims)
        # Some hosts compile longer than others, and on CPUs the first message waits for 30 s only.
        state, update = programs.start(state, hosts.wait)
        say(report.memory(update))
        update = kept_memory.keep(update)
        validation = open_validation(settings, inputs, mesh, programs.evaluate, make_task_metric)
        folder.keep = run.checkpoints_to_keep
        folder.chooser = validation.chooser if validation else None
        folder.tidy()

        # --- The loop.
        observer = Observer(settings, folder.records, start.step, quiet=not hosts.first)
        held.enter_context(contextlib.closing(observer))
        step = start.step
        if hosts.count > 1:
            batches = batches.only(sharding.own_rows(mesh, run.batch_size, run.microbatches))
        upcoming = batches.iterate(step, run.train_steps, inputs.workers)
        vote = StopVote(stop, hosts, mesh)
        stopping = vote.ask()
        while step < run.train_steps and not stopping:
            batch = sharding.put_batch(mesh, next(upcoming), run.microbatches, run.batch_size)
            batch = teacher(batch) if teacher else batch
            state, metrics = update(state, batch)
            step += 1
            observer.add(step, metrics)  # waits for the step before, while this one is computed

            stopping = vote.ask()  # asked once per step: a signal from here on waits for the next
            save_due = step == run.train_steps or step % run.checkpoint_period == 0
            eval_due = save_due or (run.eval_period > 0 and step % run.eval_period == 0)
            if not (eval_due or stopping):
                continue
            observer.flush()  # nothing is saved before its numbers have been checked
            kept_memory.give_back()  # evaluating and saving need some, too
            values = None
            if validation and eval_due and not stopping:  # a stop that was asked for comes first
                values = validation.run(states.for_use(state))
                observer.validated(step, values, validation.chooser.metric)
            if save_due or stopping:
                observer.sync()
                folder.save(step, states.to_flat(state), batches.position(step), values)
            observer.restart_clock()

        stopped_by = stopping if step < run.train_steps else ""
        return Outcome(step, state, folder.tidy(), stopped_by)


def _recorded(settings: Settings, inputs: Inputs) -> Macros:
    """What config.gin holds: the settings, and whose rows the embedding has."""
    if not inputs.vocabulary:
        return settings.macros
    return settings.macros.replace(**{DIGEST: inputs.vocabulary.digest})
