# SPDX-License-Identifier: Apache-2.0
"""What a run reads: training batches by step, and held-out batches that it never trains on.

The only file of the train loop that knows tasks and vocabularies; the loop itself sees arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from kcmoe import fits
from kcmoe.training.settings import Settings

Features = Mapping[str, np.ndarray]

_FEW_ROWS = 50  # of which one is two percent


class StepBatches(Protocol):
    """Batches [B, …] by step, as `kcmoe.data.pipeline.Batches` gives them and explains."""

    def at(self, step: int) -> Features:
        """The batch of update `step` + 1."""
        ...

    def iterate(self, start_step: int, stop_step: int, workers: int) -> Iterator[Features]:
        """The batches of steps `start_step` to `stop_step` - 1."""
        ...

    def position(self, step: int) -> dict[str, Any]:
        """Where the data stands after `step` updates, as JSON."""
        ...

    def only(self, rows: np.ndarray) -> Self:
        """These batches, but of each only the rows with these numbers, int64 [b]."""
        ...

    def resume(self, position: Mapping[str, Any]) -> Self:
        """These batches, going on at `position`."""
        ...


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Training and held-out data.

    Attributes:
      batches: training batches by step.
      held_out: batches for validation, features [rows of a microbatch, …]; () for none.
      lines: what to print about them.
      examples: the labelled examples of `held_out`, in order; () where they have no labels.
      task: the task, for scoring `examples`.
      vocabulary: the vocabulary, for the same.
      workers: processes that make batches ahead.
    """

    batches: StepBatches
    held_out: Sequence[Features] = ()
    lines: Sequence[str] = ()
    examples: Sequence[Any] = ()
    task: Any = None
    vocabulary: Any = None
    workers: int = 0

    def facts(self) -> dict[str, str]:
        """What all hosts of a run must have alike, by name."""
        data = str(self.batches.position(0).get("data", ""))
        return {"the vocabulary": getattr(self.vocabulary, "digest", ""), "the data": data}


def open_inputs(settings: Settings) -> Inputs:
    """Opens the task of the settings.

    Raises:
      UserError: for anything about vocabulary, files, columns or lengths that does not fit.
    """
    from kcmoe.config.data import DataConfig
    from kcmoe.data.settings import evaluation_batches, training_batches
    from kcmoe.tasks.registry import Mixture, get_task
    from kcmoe.vocabulary import Vocabulary

    run, data = settings.run, DataConfig.from_macros(settings.macros)
    vocabulary = Vocabulary(data.vocabulary_file)
    fits.check_vocabulary(vocabulary.path, vocabulary.size, settings.model.num_embeddings)
    task = get_task(settings.macros)
    batches = training_batches(settings.macros, vocabulary)
    lines = [
        f"data        {run.task}, {batches.steps_per_epoch:,.1f} steps per epoch; "
        f"vocabulary of {vocabulary.size:,} pieces"
    ]
    held_out: list[Features] = []
    examples: list[Any] = []
    parts = [one for one, _ in task.weights] if isinstance(task, Mixture) else [task]
    for part in parts if run.eval_period else []:
        if "validation" not in part.splits:
            lines.append(f"held out    nothing: task {part.name} has no validation split")
            continue
        rows, count = run.batch_size // run.microbatches, run.eval_steps * run.microbatches
        split = evaluation_batches(settings.macros, part, "validation", rows, vocabulary, count)
        held_out += list(split)
        examples += split.examples
        whence = "its validation file"
        if part.is_held_out("validation"):
            whence = f"{part.holdout:.0%} of its training file, chosen by hash and never trained on"
        rows_held = f"{split.num_rows:,} row{'s' if split.num_rows != 1 else ''}"
        lines.append(f"held out    {rows_held} of {part.name} for validation: {whence}")
        if split.num_rows < _FEW_ROWS:
            lines.append(
                f"warning     {rows_held} held out are too few to judge by: name a file of more in "
                "TASK_VALIDATION_FILES"
            )
    return Inputs(batches, held_out, lines, examples, task, vocabulary, data.num_workers)
