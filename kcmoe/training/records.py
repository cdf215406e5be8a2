# SPDX-License-Identifier: Apache-2.0
"""What a run leaves on disk per step: `metrics.jsonl` and TensorBoard events, without gaps or
doubles.

A record of step N is on disk before checkpoint N is, and a run that continues from checkpoint N first
cuts off everything later than N. So after any stop both files hold each step exactly once.
Event files are those of TensorBoard (and of T5X): length, masked CRC, protobuf, masked CRC.
This file does not know what the numbers mean.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe.io import durable, json_text

Values = Mapping[str, Any]  # name -> a number or an array of numbers

PLACES = ("metrics.jsonl", "train/", "eval/")
"""How the names of all records begin."""
_PART = re.compile(
    r"(metrics\.jsonl|(?:train|eval)/events\.out\.tfevents\.[\w.-]+?)(?:\.from-([1-9]\d{0,17}))?"
)
_HEADER = struct.Struct("<QI")  # length of the payload, CRC of the length
_CRC_BYTES = 4


class Recorder:
    """Appends one line and one event per step to a model directory."""

    def __init__(self, model_dir: Path):
        self._model_dir = model_dir
        with durable.user_errors(model_dir):
            self._lines = open(model_dir / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._events: dict[str, Any] = {}

    def write(self, split: str, step: int, values: Values) -> None:
        """Records `values` of update `step` (the first is 1) under "train" or "eval"."""
        plain = {name: _plain(value) for name, value in values.items()}
        with durable.user_errors(self._model_dir):
            self._lines.write(json.dumps({"step": step, "split": split, **plain}) + "\n")
            self._lines.flush()
            if split not in self._events:
                self._events[split] = _event_file(self._model_dir / split)
            self._events[split].write_event(_event(step, plain))

    def sync(self) -> None:
        """Returns when everything written so far has reached the disk."""
        with durable.user_errors(self._model_dir):
            self._lines.flush()
            os.fsync(self._lines.fileno())
            for events in self._events.values():
                events.flush()

    def close(self) -> None:
        """Ends the files, on disk."""
        self.sync()
        self._lines.close()
        for events in self._events.values():
            events.close()


def cut_after(model_dir: Path, step: int) -> None:
    """Removes every record later than `step`, and a last record that was cut short by a kill."""
    lines = model_dir / "metrics.jsonl"
    with durable.user_errors(model_dir):
        join(model_dir)
        if lines.exists():
            _truncate(lines, _end_of_lines(lines, step))
        for events in sorted(model_dir.glob("*/events.out.tfevents.*")):
            _truncate(events, _end_of_events(events, step))


def part_of(name: str) -> tuple[str, int] | None:
    """The record that a file below a model directory is part of, and its first byte there; None for others.

    Objects of a bucket do not grow, so there what was added to a record is an object of its own.
    """
    found = _PART.fullmatch(name)
    return (found[1], int(found[2] or 0)) if found else None


def part_name(name: str, first_byte: int) -> str:
    """The name of the part of the record `name` that begins with its byte `first_byte`."""
    return f"{name}.from-{first_byte}" if first_byte else name


def files(model_dir: Path) -> Iterator[tuple[Path, str, int]]:
    """The files of records: each with the name of its record and its first byte there."""
    for start in PLACES:
        for path in sorted(model_dir.glob(f"{start}*")):
            part = part_of(path.relative_to(model_dir).as_posix())
            if part and path.is_file():
                yield path, *part


def _later_parts(model_dir: Path) -> dict[str, list[tuple[int, Path]]]:
    """Record -> first byte and file of each of its parts but the first one."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path, name, first_byte in files(model_dir):
        if first_byte:
            found.setdefault(name, []).append((first_byte, path))
    return found


def join(model_dir: Path) -> None:
    """Makes whole the records that came in parts: those of a bucket, whatever copied them.

    Parts go, also those before which something is missing. Nobody may be writing. Raises OSError.
    """
    for name, found in _later_parts(model_dir).items():
        whole = model_dir / name
        size = whole.stat().st_size if whole.exists() else 0
        if size in (first_byte for first_byte, _ in found):
            temporary = durable.temporary_name(model_dir / whole.name)
            try:
                shutil.copyfile(whole, temporary)
                with open(temporary, "ab") as file:
                    for first_byte, path in sorted(found):
                        if file.tell() == first_byte:
                            file.write(path.read_bytes())
                durable.finish_file(temporary, whole)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        for _, path in found:
            path.unlink()


@contextlib.contextmanager
def whole(model_dir: Path) -> Iterator[Path]:
    """A folder with the records of `model_dir`: itself, or where they came in parts a copy without."""
    if not _later_parts(model_dir):
        yield model_dir
        return
    with tempfile.TemporaryDirectory(prefix="kcmoe-") as copy:
        for path, _, _ in files(model_dir):
            target = Path(copy) / path.relative_to(model_dir)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        join(Path(copy))
        yield Path(copy)


def _truncate(path: Path, size: int) -> None:
    if size < path.stat().st_size:
        os.truncate(path, size)


def _end_of_lines(path: Path, step: int) -> int:
    """Bytes of `path` up to the first line that is later than `step` or broken."""
    end = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                if not line.endswith(b"\n") or json_text.parse(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            end += len(line)
    return end


def _end_of_events(path: Path, step: int) -> int:
    """Bytes of an event file up to the first event that is later than `step`, cut short or damaged."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    end, size = 0, path.stat().st_size
    with open(path, "rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length = _HEADER.unpack(header)[0]
            if length + _CRC_BYTES > size - file.tell():
                break
            try:
                event = Event.FromString(file.read(length + _CRC_BYTES)[:length])
            except DecodeError:
                break
            if event.step > step:
                break
            end = file.tell()
    return end


def _plain(value: Any) -> Any:
    """A number or nested list for JSON. JSON has no NaN, so what is not finite becomes its name."""
    array = np.asarray(value)
    if array.ndim:
        return [_plain(item) for item in array]
    number = array.item()
    if isinstance(number, float):
        # Nine significant digits bring back every float32.
        return float(f"{number:.9g}") if math.isfinite(number) else str(number)
    return number


def _event_file(folder: Path) -> Any:
    from tensorboardX.event_file_writer import EventsWriter

    folder.mkdir(parents=True, exist_ok=True)
    # The name holds whole seconds only; two starts within one would overwrite each other.
    return EventsWriter(str(folder / "events"), f".{time.time_ns()}")


def _event(step: int, values: Values) -> Any:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    scalars = []
    for name, value in values.items():
        many = isinstance(value, list)
        for index, item in enumerate(value if many else [value]):
            named = isinstance(item, str) and item in ("nan", "inf", "-inf")  # see `_plain`
            if named or isinstance(item, int | float):
                tag = f"{name}/{index:02d}" if many else name
                scalars.append(Summary.Value(tag=tag, simple_value=float(item)))
    return Event(step=step, wall_time=time.time(), summary=Summary(value=scalars))
