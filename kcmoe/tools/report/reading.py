# SPDX-License-Identifier: Apache-2.0
"""A model directory to what a report shows of it: series of `metrics.jsonl`, settings, restarts.

The file may be of a run that goes on, cut in the middle of a line, or damaged: what can be read is shown, and
what could not is counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe.config import gin_files
from kcmoe.errors import UserError
from kcmoe.io import json_text, remote
from kcmoe.io.wording import first_line
from kcmoe.tools.report.series import COLUMNS, INTERVALS, Intervals, Loads, Series
from kcmoe.training.observing import WINDOW_STEPS, collapse_threshold
from kcmoe.training.records import whole

_AT_ONCE = 4096  # records turned into arrays together
_LOAD = "/expert_load"
_TAIL_BYTES = 1 << 20
_LONG_BYTES = 100_000_000  # takes seconds to read


@dataclasses.dataclass
class Run:
    """One run.

    Attributes:
      name: what to call it.
      folder: its model directory.
      settings: macros of its config.gin, {} if there is none.
      intervals: of its series.
      train: metric -> series of the training steps.
      evaluations: metric -> (steps, values).
      loads: layer -> loads of its experts.
      restarts: first step of each start but the first.
      broken: lines that could not be read.
      cut: whether the last line has no end.
      records: training steps recorded.
      seconds: sum of the time of all steps.
      tokens: target tokens seen.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    intervals: Intervals
    train: dict[str, Series] = dataclasses.field(default_factory=dict)
    evaluations: dict[str, tuple[list[int], list[float]]] = dataclasses.field(default_factory=dict)
    loads: dict[str, Loads] = dataclasses.field(default_factory=dict)
    restarts: list[int] = dataclasses.field(default_factory=list)
    broken: int = 0
    cut: bool = False
    records: int = 0
    seconds: float = 0.0
    tokens: float = 0.0


def read(folder: Path, name: str, called: str) -> Run:
    """Reads a run.

    Args:
      folder: its model directory on this machine, or a file of records.
      name: what pictures call it.
      called: what messages call the folder.

    Raises:
      UserError: if there is no folder, or no metrics in it.
    """
    path = folder / "metrics.jsonl" if folder.is_dir() else folder
    if not path.is_file():
        hint = " Give the MODEL_DIR of a run of kcmoe train"
        if not folder.exists():
            raise UserError(f"there is no {called}.{hint}")
        raise UserError(f"{called} has no metrics.jsonl.{hint}, not a checkpoint in it")
    folder = path.parent
    try:
        with whole(folder) as records:
            copied = records / path.name
            return _read(name, folder, copied if copied.exists() else path, called)
    except OSError as error:
        raise UserError(f"the records of {called} cannot be copied: {first_line(error)}") from error


def _read(name: str, folder: Path, path: Path, called: str) -> Run:
    """The run of `folder`, whose records are in `path` and beside it."""
    bounds = _first_and_last(path)
    if bounds is None and _has_line(path):
        raise UserError(
            f"{called} is not what kcmoe train records: no line of it is a step. Give the MODEL_DIR "
            "of a run"
        )
    if bounds is None:
        raise UserError(f"{called} has no step yet; try again when the run has begun")
    run = Run(name, folder, _settings(folder), Intervals(*bounds, INTERVALS))
    _fill(run, path, bounds)
    starts = _starts(path.parent)
    run.restarts = [step for step in starts if step > bounds[0] and step <= bounds[1]]
    return run


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if it is none."""
    try:
        found = json_text.parse(line)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    step = found.get("step")
    return found if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def _first_and_last(path: Path) -> tuple[int, int] | None:
    """First and last step of any record, without reading all of them."""
    with _opened(path) as file:
        first = next((r for line in file if (r := _record(line))), None)
        if first is None:
            return None
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        steps = [r["step"] for line in file if (r := _record(line))]
    return first["step"], max([first["step"], *steps])


def _has_line(path: Path) -> bool:
    with _opened(path) as file:
        return b"\n" in file.read(_TAIL_BYTES)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with remote.open_binary(str(path)) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _fill(run: Run, path: Path, bounds: tuple[int, int]) -> None:
    waiting: list[dict[str, Any]] = []
    from tqdm import tqdm

    size, quiet = (
        path.stat().st_size,
        None,
    )  # on a terminal only, and where there is something to wait for
    with (
        _opened(path) as file,
        tqdm(
            total=size, unit="B", unit_scale=True, disable=True if size < _LONG_BYTES else quiet
        ) as bar,
    ):
        for line in file:
            bar.update(len(line))
            record = _record(line)
            if record is None:
                if line.endswith(b"\n"):
                    run.broken += bool(line.strip())
                else:
                    run.cut = True
            elif record.get("split") == "train":
                waiting.append(record)
                if len(waiting) == _AT_ONCE:
                    _add(run, waiting, bounds)
                    waiting = []
            else:
                _add_evaluation(run, record)
    if waiting:
        _add(run, waiting, bounds)


def _add(run: Run, records: list[dict[str, Any]], bounds: tuple[int, int]) -> None:
    records.sort(key=lambda record: int(record["step"]))
    steps = np.array([record["step"] for record in records], np.int64)
    run.records += len(records)
    for name in dict.fromkeys(key for record in records for key in record):
        column = [record.get(name) for record in records]
        if name.endswith(_LOAD):
            _add_loads(run, name, steps, column, bounds)
            continue
        if name in ("step", "split"):
            continue
        present = np.array([value is not None for value in column])
        values = _numbers(column)
        if not present.any():
            continue
        run.train.setdefault(name, Series(run.intervals)).add(steps[present], values[present])
        if name == "step_s":
            run.seconds += float(np.nansum(values))
        elif name == "target_tokens":
            run.tokens += float(np.nansum(values))


def _numbers(column: list[Any]) -> np.ndarray:
    try:
        return np.array(column, np.float64)  # None becomes NaN
    except (TypeError, ValueError):
        return np.array([_number(value) for value in column])


def _number(value: Any) -> float:
    """A number, or the name of one that JSON lacks; NaN for anything else."""
    try:
        return float(value) if isinstance(value, int | float | str) else float("nan")
    except ValueError:
        return float("nan")


def _add_loads(
    run: Run, name: str, steps: np.ndarray, column: list[Any], bounds: tuple[int, int]
) -> None:
    lists = [value if isinstance(value, list) else None for value in column]
    experts = max((len(value) for value in lists if value), default=0)
    good = [i for i, value in enumerate(lists) if value and len(value) == experts]
    if not experts:
        return
    layer = name.removeprefix("router/").removesuffix(_LOAD)
    if layer not in run.loads:
        chosen = run.settings.get("NUM_SELECTED_EXPERTS", 2)
        intervals = Intervals(*bounds, COLUMNS)
        threshold = collapse_threshold(experts, chosen)
        run.loads[layer] = Loads(intervals, experts, WINDOW_STEPS, threshold)
    values = np.array([_numbers(lists[i] or []) for i in good])
    if values.shape[1] == len(run.loads[layer].last_seen):
        run.loads[layer].add(steps[good], values)


def _add_evaluation(run: Run, record: dict[str, Any]) -> None:
    for name, value in record.items():
        if name in ("step", "split") or isinstance(value, list | dict):
            continue
        steps, values = run.evaluations.setdefault(name, ([], []))
        steps.append(record["step"])
        values.append(_number(value))


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.gin"
    if not path.is_file():
        return {}
    try:
        return dict(gin_files.parse([str(path.absolute())], foreign=True, includes=False))
    except UserError:
        return {}


def _starts(folder: Path) -> list[int]:
    """First step of each file of TensorBoard events: the engine begins one at each start."""
    found = []
    for path in sorted(folder.glob("train/events.out.tfevents.*")):
        with contextlib.suppress(Exception):  # foreign or damaged files tell nothing
            step = _first_step(path)
            if step is not None:
                found.append(step)
    return sorted(set(found))[1:]


def _first_step(path: Path) -> int | None:
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    size = path.stat().st_size
    with _opened(path) as file:
        while len(header := file.read(12)) == 12:
            length = struct.unpack("<Q", header[:8])[0]
            if length > size:
                break
            try:
                event = Event.FromString(file.read(length))
            except DecodeError:
                break
            file.read(4)
            if event.step:
                return int(event.step)
    return None  # also where it is cut or damaged
