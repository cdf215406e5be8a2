# SPDX-License-Identifier: Apache-2.0
"""The result of an evaluation: as a table for people, as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kcmoe.checkpoint import shipped
from kcmoe.errors import UserError
from kcmoe.evaluation.metrics import Measurement
from kcmoe.evaluation.protocol import ProtocolResult
from kcmoe.evaluation.selection import Selection
from kcmoe.io import durable, json_text, outputs
from kcmoe.io.remote import Address, Place, is_remote
from kcmoe.io.wording import aligned

FOLDER = "evaluation"


@dataclasses.dataclass(frozen=True)
class Report:
    """One checkpoint on one split of one task.

    Attributes:
      checkpoint: its folder.
      step: training step.
      task: name of the task.
      split: name of the split.
      examples: how many were answered.
      of_examples: how many the split has.
      settings: what the answers depend on besides the weights.
      outcomes: protocol -> what it gave.
      seconds: protocol -> time for all examples, compilation included.
      selection: what was held out for choosing the checkpoint.
    """

    checkpoint: str
    step: int
    task: str
    split: str
    examples: int
    of_examples: int
    settings: Mapping[str, Any]
    outcomes: Mapping[str, ProtocolResult]
    seconds: Mapping[str, float]
    selection: Selection

    @property
    def ids_file(self) -> str:
        """Name of the file with the ids of the held-out examples, one a line."""
        return f"{self.task}-held-out.txt"

    def table(self) -> str:
        """Protocols side by side; metrics times 100 with one standard error."""
        part = "" if self.examples == self.of_examples else f" of {self.of_examples:,}"
        title = f"{self.task}, {self.split} split, {self.examples:,}{part} examples"
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        rows = [["x 100, ± one standard error", *self.outcomes]]
        first = next(iter(self.outcomes.values()))
        for name in first.metrics:
            rows.append([name, *(_cell(one.metrics[name]) for one in self.outcomes.values())])
        if "generate" in self.outcomes:
            unknown = [f"{one.unknown:,}" for one in self.outcomes.values()]
            rows.append(["answers that are no label", *unknown])
        rows.append(["examples/s", *(f"{self.examples / s:,.0f}" for s in self.seconds.values())])
        lines = [title, f"{self.checkpoint} (step {self.step:,}; {settings})", ""]
        return "\n".join(
            [*lines, *aligned(rows), "", *self.selection.lines(self.checkpoint, self.ids_file)]
        )

    def as_json(self) -> dict[str, Any]:
        """The same for programs; metrics are fractions."""
        protocols = {
            name: {
                "metrics": {
                    metric: _json(estimate) for metric, estimate in outcome.metrics.items()
                },
                "answers_that_are_no_label": outcome.unknown,
                "seconds": round(self.seconds[name], 3),
            }
            for name, outcome in self.outcomes.items()
        }
        return {
            "checkpoint": self.checkpoint,
            "step": self.step,
            "task": self.task,
            "split": self.split,
            "examples": self.examples,
            "of_examples": self.of_examples,
            "settings": dict(self.settings),
            "protocols": protocols,
            "held_out": self.selection.as_json(),
        }


def _cell(estimate: Measurement) -> str:
    if not math.isfinite(estimate.value):
        return "none: all answers, or all true scores, are equal"
    error = estimate.standard_error
    return f"{100 * estimate.value:.2f} ± {f'{100 * error:.2f}' if math.isfinite(error) else 'unknown'}"


def _json(estimate: Measurement) -> dict[str, float | None]:
    return {name: finite(value) for name, value in estimate._asdict().items()}


def finite(value: float) -> float | None:
    """A number as JSON can hold it: None for nan."""
    return float(value) if math.isfinite(value) else None


def model_dir_of(checkpoint: str) -> str:
    """The folder of a checkpoint; the current one for a model that ships, beside which nothing is written."""
    if shipped.is_shipped(checkpoint):
        return os.curdir
    one: Place = Address(checkpoint) if is_remote(checkpoint) else Path(os.path.abspath(checkpoint))
    return str(one.parent)


def output_folder(model_dir: str, chosen: str | None) -> Path:
    """Where reports go, made and known to be writable before anything is computed.

    Raises:
      UserError: if it is in a bucket or cannot be written to.
    """
    if chosen is not None and is_remote(chosen):
        raise UserError(
            f"EVAL_OUTPUT_DIR = {chosen!r} is not on this machine: write to a local folder, then copy it "
            "there"
        )
    if chosen is None and is_remote(model_dir):
        raise UserError(
            f"the checkpoint is in a bucket ({model_dir}); say where the report goes with "
            "--gin.EVAL_OUTPUT_DIR='\"dir\"'"
        )
    folder = Path(chosen) if chosen is not None else Path(model_dir) / FOLDER
    try:
        outputs.check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except UserError as error:
        raise UserError(f"{error}; set EVAL_OUTPUT_DIR to another place") from None
    return folder


def place(folder: Path, checkpoint: str, task: str, split: str, examples: int, of: int) -> Path:
    """The file of a report.

    Raises:
      UserError: if it is there and is no report on this checkpoint, which may be made anew.
    """
    part = "" if examples == of else f"-{examples}"
    found = folder / f"{task}-{split}{part}-{os.path.basename(checkpoint)}.json"
    try:
        held = str(json_text.parse(found.read_bytes())["checkpoint"])
    except FileNotFoundError:
        return found
    except (OSError, ValueError, KeyError, TypeError):
        held = "something else"
    # In the checkpoint's own folder names are enough, wherever one stood when it was written.
    beside = os.path.realpath(folder.parent) == os.path.dirname(os.path.realpath(checkpoint))
    same = os.path.basename(held) == os.path.basename(checkpoint) if beside else held == checkpoint
    if not same and os.path.realpath(held) != os.path.realpath(checkpoint):
        raise UserError(
            f"{found} is there already and is about {held}, not {checkpoint}; move it away, or set "
            "EVAL_OUTPUT_DIR to another place"
        )
    return found


def write(report: Report, path: Path) -> None:
    """Writes the JSON, and the ids of held-out examples beside it, each at once or not at all."""
    content = json.dumps(report.as_json(), ensure_ascii=False, indent=1).encode() + b"\n"
    durable.write_file(path, content)
    if report.selection.ids:
        ids = "".join(f"{one}\n" for one in report.selection.ids)
        durable.write_file(path.with_name(report.ids_file), ids.encode())
