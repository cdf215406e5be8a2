# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: what the disk refuses is one line, and a lock is asked of every file system."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kcmoe.errors import UserError
from kcmoe.training.loop import train
from kcmoe.training.records import Recorder, cut_after
from kcmoe.training.run_folder import Chooser, RunFolder, read_best, read_extra


def nobody(line: str) -> None:
    raise AssertionError(line)


def test_a_folder_one_may_not_look_into_is_one_line(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below another person's home, also where the tests run as root."""
    closed, stat, access = tmp_path / "closed", os.stat, os.access
    closed.mkdir()

    def refusing(path: Any, *args: Any, **options: Any) -> Any:
        if closed in Path(path).parents:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refusing)
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))
    macros = toy.settings(closed / "a/run").macros
    with pytest.raises(UserError, match=f"run cannot be written to: .* permission .* {closed}$"):
        RunFolder(macros)


def test_a_name_that_is_too_long_is_one_line(toy: ModuleType, tmp_path: Path) -> None:
    folder = RunFolder(toy.settings(tmp_path / ("x" * 300)).macros)
    with (
        pytest.raises(UserError, match=r"cannot be written: .*File name too long"),
        folder.locked(nobody),
    ):
        pass


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_a_file_that_cannot_be_opened_is_one_line(
    toy: ModuleType, tmp_path: Path, name: str
) -> None:
    folder = RunFolder(toy.settings(tmp_path).macros)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"cannot be written: .*{name}"):  # noqa: SIM117
        with folder.locked(nobody):
            Recorder(tmp_path)
    if name == "metrics.jsonl":
        with pytest.raises(UserError, match=f"cannot be written: .*{name}"):
            cut_after(tmp_path, 1)


def test_a_file_system_without_locks_is_told_and_used(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    said: list[str] = []
    with RunFolder(toy.settings(tmp_path / "run").macros).locked(said.append):
        (tmp_path / "run/config.gin").touch()
    (line,) = said
    assert "cannot be locked (No locks available): nothing keeps a second kcmoe train out" in line


def test_a_second_run_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    folder = RunFolder(toy.settings(tmp_path).macros)
    with (
        folder.locked(nobody),
        pytest.raises(UserError, match="another kcmoe train is writing"),
        folder.locked(nobody),
    ):
        pass


def test_lost_checksums_are_said_and_the_position_is_kept(
    toy: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(toy.settings(tmp_path).macros)
    state = {"state/step": np.int32(1), "target/norm/scale": np.ones(2, np.float32)}
    for step in (1, 2):
        folder.save(step, {**state, "state/step": np.int32(step)}, {"row": 8 * step}, None)
    assert not caplog.records
    (tmp_path / "checkpoint_2/kcmoe.json").unlink()
    for _ in range(2):  # said once
        assert read_extra(tmp_path / "checkpoint_2")["data_position"] == {"row": 16}
    (tmp_path / "checkpoint_2/training.json").unlink()
    assert read_extra(tmp_path / "checkpoint_2") == {}
    (tmp_path / "checkpoint_1/kcmoe.json").unlink()
    (tmp_path / "checkpoint_1/training.json").unlink()
    assert read_extra(tmp_path / "checkpoint_1") == {}  # as T5X saves
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert f"{tmp_path}/checkpoint_2 has lost its checksums" in said[0]
    assert "training.json says that kcmoe saved it" in said[0]
    assert "checkpoint_1 beside it has one" in said[1]


@pytest.mark.parametrize("content", [None, "not JSON", "[]", '{"checkpoint": "checkpoint_1"}'])
def test_a_best_checkpoint_that_is_not_named_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "best.json").write_text(content)
    assert read_best(tmp_path) is None
    assert read_best("gs://bucket/run") is None


def test_without_the_chosen_metric_the_loss_names_the_best(tmp_path: Path, toy: ModuleType) -> None:
    """A correlation does not exist where all scores are equal."""
    macros = toy.settings(tmp_path).macros
    folder = RunFolder(macros)
    folder.chooser = Chooser("spearman", higher_is_better=True)
    state = {"state/step": np.int32(0), "target/norm/scale": np.ones(2, np.float32)}
    for step, loss in ((1, 2.0), (2, 1.0), (3, 1.5)):
        values = {"spearman": float("nan"), "cross_ent_loss": loss}
        folder.save(step, {**state, "state/step": np.int32(step)}, {}, values)
    best = read_best(tmp_path)
    assert best is not None
    assert (best["checkpoint"], best["metric"]) == ("checkpoint_2", "cross_ent_loss")
    folder.save(4, {**state, "state/step": np.int32(4)}, {}, {"spearman": 0.1})
    best = read_best(tmp_path)
    assert best is not None
    assert (best["checkpoint"], best["metric"]) == ("checkpoint_4", "spearman")


def test_a_run_that_is_refused_says_nothing_else(toy: ModuleType, tmp_path: Path) -> None:
    settings = toy.settings(tmp_path / "run", INITIAL_CHECKPOINT_PATH=str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no checkpoint"):
        train(settings, toy.inputs(), say=nobody)
    assert not (tmp_path / "run").exists()
