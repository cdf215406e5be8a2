# SPDX-License-Identifier: Apache-2.0
"""What was held out for choosing a checkpoint, and which checkpoint was chosen by it.

Said beside every score, so that a reader can check that the test split was not used to choose: training
reads the train and validation splits only, and `best.json` records its choice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kcmoe.checkpoint.run_config import CONFIG_FILE
from kcmoe.config import gin_files
from kcmoe.data.labelled import labelled_examples, split_files
from kcmoe.errors import UserError
from kcmoe.tasks.registry import Task
from kcmoe.training.run_folder import BEST, read_best

if TYPE_CHECKING:
    from kcmoe.config.data import DataConfig


@dataclasses.dataclass(frozen=True)
class Selection:
    """How the checkpoint was chosen.

    Attributes:
      rule: which examples are held out, in words.
      ids: their ids, in file order; () where their files are not here.
      used: how many of them, evenly spread, each evaluation during training used.
      best: `best.json` of the model directory, or None.
      trained_on: the task of the run where that is another one.
    """

    rule: str
    ids: tuple[str, ...]
    used: int
    best: Mapping[str, Any] | None
    trained_on: str = ""

    def lines(self, checkpoint: str, ids_file: str) -> list[str]:
        """What to print under the scores of `checkpoint`; `ids_file` is where the ids are written."""
        lines = [f"held out for choosing a checkpoint: {self.rule}"]
        if self.ids:
            shown = ", ".join(self.ids[:3])
            lines.append(
                f"  {len(self.ids):,} examples ({shown}, …), {self.used:,} of them, evenly spread, used at "
                f"each evaluation; all ids: {ids_file}"
            )
        name = os.path.basename(checkpoint)
        if self.best is None:
            lines.append(f"{name} was not chosen by a metric here: there is no {BEST} beside it")
        else:
            chosen = f"{self.best['checkpoint']} by validation {self.best['metric']}"
            value = f"{float(self.best['value']):.4f}"
            verdict = "this one" if self.best["checkpoint"] == name else f"not {name}"
            by = f"chosen on {self.trained_on}" if self.trained_on else "chosen by these"
            lines.append(f"{by}: {chosen} {value} ({verdict})")
        return lines

    def as_json(self) -> dict[str, Any]:
        """For the JSON report."""
        best = None if self.best is None else dict(self.best)
        return {"rule": self.rule, "examples": len(self.ids), "used": self.used, "best": best,
                "trained_on": self.trained_on}  # fmt: skip


def selection(task: Task, macros: Mapping[str, Any], data: DataConfig, model_dir: str) -> Selection:
    """Reads the held-out examples of `task` and the choice recorded in `model_dir`."""
    # What the run evaluated on is its own config.gin's to say; `macros` are those of this evaluation.
    with contextlib.suppress(UserError):
        macros = gin_files.parse(
            [os.path.join(model_dir, CONFIG_FILE)], foreign=True, includes=False
        )
    best = read_best(model_dir)
    own = str(macros.get("MIXTURE_OR_TASK_NAME") or task.name)
    if task.name not in (own, *(macros.get("MIXTURE") or ())):
        rule = f"nothing of {task.name}, for this run was trained on {own}"
        return Selection(rule, (), 0, best, trained_on=own)
    rule, ids = _held_out(task, data)
    used = int(macros.get("EVAL_STEPS") or 0) * int(macros.get("BATCH_SIZE") or 0)
    return Selection(rule, ids, min(len(ids), used or len(ids)), best)


def _held_out(task: Task, data: DataConfig) -> tuple[str, tuple[str, ...]]:
    if "validation" not in task.splits:
        return f"nothing, {task.name} has no validation split", ()
    source = "train" if task.is_held_out("validation") else "validation"
    files, unread = list(task.files[source]), ""
    ids: tuple[str, ...] = ()
    try:
        files = split_files(task, "validation", data.data_dir)
        examples = labelled_examples(task, "validation", data.data_dir, strict=data.strict)
        ids = tuple(example.id for example in examples)
    except UserError as error:
        unread = f" (not listed: {error})"
    names = ", ".join(map(os.path.basename, files[:3])) + (", …" if len(files) > 3 else "")
    if task.is_held_out("validation"):
        rule = f"{task.holdout:.0%} of {names}, by the hash of the input text; never trained on"
    else:
        rule = f"all rows of {names}; never trained on"
    return rule + unread, ids
