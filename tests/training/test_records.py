# SPDX-License-Identifier: Apache-2.0
"""Records: each step once, whatever was cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcmoe.training.records import Recorder, cut_after


def events(model_dir: Path, split: str = "train") -> list[Any]:
    """The events with values, as TensorBoard's own format says."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((model_dir / split).glob("events*")):
        content = path.read_bytes()
        at = 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            if event.summary.value:
                found.append(event)
            at += 12 + length + 4
        assert at == len(content)
    return found


def event_steps(model_dir: Path) -> list[int]:
    return [event.step for event in events(model_dir)]


def line_steps(model_dir: Path) -> list[int]:
    lines = (model_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def write(model_dir: Path, steps: range) -> None:
    recorder = Recorder(model_dir)
    for step in steps:
        recorder.write("train", step, {"loss": 1.0 / step, "load": np.array([0.25, 0.75])})
    recorder.close()


def test_values_come_back(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    loss = np.float32(0.1) + np.float32(1e-7)
    recorder.write("train", 1, {"loss": loss, "dead": 3, "load": np.float32([0.5, 0.5])})
    recorder.write("train", 2, {"loss": np.float32("nan")})
    recorder.close()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert np.float32(first["loss"]) == loss
    assert (first["dead"], first["load"]) == (3, [0.5, 0.5])
    assert second["loss"] == "nan"
    assert event_steps(tmp_path) == [1, 2]


def test_no_number_in_an_array_keeps_its_place(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write("train", 1, {"load": np.float32([0.5, np.nan]), "loss": np.float32(np.inf)})
    recorder.close()
    (event,) = events(tmp_path)
    values = {value.tag: value.simple_value for value in event.summary.value}
    np.testing.assert_equal(values, {"load/00": 0.5, "load/01": np.nan, "loss": np.inf})


@pytest.mark.parametrize("restored", [0, 1, 4, 9])
def test_continuing_neither_doubles_nor_loses_steps(tmp_path: Path, restored: int) -> None:
    write(tmp_path, range(1, 8))
    cut_after(tmp_path, restored)
    write(tmp_path, range(min(restored, 7) + 1, 11))
    assert line_steps(tmp_path) == list(range(1, 11))
    assert event_steps(tmp_path) == list(range(1, 11))


@pytest.mark.parametrize("lost_bytes", [1, 5, 40])
def test_a_record_cut_short_by_a_kill_is_dropped(tmp_path: Path, lost_bytes: int) -> None:
    write(tmp_path, range(1, 4))
    for path in [tmp_path / "metrics.jsonl", *(tmp_path / "train").iterdir()]:
        path.write_bytes(path.read_bytes()[:-lost_bytes])
    cut_after(tmp_path, 100)
    assert line_steps(tmp_path) == [1, 2]
    assert event_steps(tmp_path) == [1, 2]


def test_a_model_directory_without_records_is_fine(tmp_path: Path) -> None:
    cut_after(tmp_path, 5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"\xff" * 24, b"\x10" + bytes(11) + b"\xff" * 20])
def test_a_damaged_event_file_ends_before_the_damage(damage: bytes, tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    (file,) = (tmp_path / "train").glob("events*")
    content = file.read_bytes()
    file.write_bytes(content + damage)
    cut_after(tmp_path, 3)
    assert file.read_bytes() == content
