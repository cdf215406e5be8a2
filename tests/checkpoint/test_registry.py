# SPDX-License-Identifier: Apache-2.0
"""A new format is one file and one entry: a toy format, registered here, does what the others do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcmoe import checkpoint, tree
from kcmoe.checkpoint import formats
from kcmoe.checkpoint.base import Format, Provenance, Reader, Writer
from kcmoe.checkpoint.storage import Damaged, Folder
from kcmoe.cli import run
from kcmoe.errors import UserError
from kcmoe.tree import ShapeDtype, shape_dtype

State = dict[str, np.ndarray]
INDEX = "toy.json"


class ToyReader(Reader):
    """Reads a folder with one .npy file per parameter, transposed, under a name of its own."""

    format = "toy"

    def _scan(self) -> tuple[dict[str, ShapeDtype], dict[str, str]]:
        leaves, problems = {}, {}
        for name, file in self._index()["files"].items():
            if self.folder.exists(file):
                leaves[tree.PARAMETERS + name] = shape_dtype(self._array(file))
            else:
                problems[tree.PARAMETERS + name] = f"missing (its file {file} is not there)"
        return leaves, problems

    def _read(self, path: str) -> np.ndarray:
        return self._array(self._index()["files"][tree.parameter_of(path)])

    @property
    def step(self) -> int:
        return int(self._index()["step"])

    def recorded(self) -> dict[str, Any]:
        return dict(self._index()["macros"])

    def _index(self) -> dict[str, Any]:
        return json.loads(self.folder.read(INDEX))

    def _array(self, file: str) -> np.ndarray:
        try:
            return np.load(Path(self.path) / file).T
        except ValueError as error:
            raise Damaged(str(error)) from error


class ToyWriter(Writer):
    """Writes what `ToyReader` reads, each leaf as it comes."""

    def __init__(self, folder: Path, tree: Mapping[str, ShapeDtype], about: Provenance):
        if not about.macros:
            raise UserError(f"{about.path} does not tell of its run")
        super().__init__(folder, tree, about)
        self._files: dict[str, str] = {}

    def add(self, path: str, array: np.ndarray) -> None:
        name = tree.parameter_of(path) or ""
        self._files[name] = f"{len(self._files)}.npy"
        np.save(self.folder / self._files[name], array.T)

    def finish(self, final: str) -> None:
        fields = {"step": self.about.step, "files": self._files, "macros": self.about.macros}
        (self.folder / INDEX).write_text(json.dumps(fields))


def is_toy(folder: Folder) -> bool:
    return folder.exists(INDEX)


TOY = Format(
    name="toy",
    title="the toys' format",
    recognises=is_toy,
    finished=is_toy,
    reader=ToyReader,
    writer=ToyWriter,
    parameters_only=True,
    foreign=True,
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(formats.FORMATS, TOY.name, TOY)


@pytest.fixture
def plain(state: State) -> State:
    """The state without bfloat16, which .npy does not know."""
    return {path: array for path, array in state.items() if array.dtype != "bfloat16"}


@pytest.mark.usefixtures("toy")
def test_it_is_written_recognised_and_read_like_the_others(
    plain: State, write: Callable[..., Path], tmp_path: Path, same: Callable[[State, State], None]
) -> None:
    source, toys, back = write(plain), tmp_path / "toys/checkpoint_7", tmp_path / "back"
    checkpoint.convert(source, toys, "toy")
    assert {path.suffix for path in toys.iterdir()} == {".json", ".npy"}, "files of ours in it"
    reader = checkpoint.open_checkpoint(toys)
    assert (reader.format, reader.step) == ("toy", 7)
    assert checkpoint.latest(tmp_path / "toys") == toys
    parameters = {path: array for path, array in plain.items() if tree.is_parameter(path)}
    same(parameters, {path: reader.read(path) for path in reader.tree()})
    # Back again: what the shapes told on the way there stands in the config.json of the copy.
    checkpoint.convert(toys, back, "safetensors")
    same(parameters, checkpoint.restore(back, parameters))
    assert json.loads((back / "config.json").read_text())["EMBED_DIM"] == 16


@pytest.mark.usefixtures("toy")
def test_messages_and_help_know_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[..., Path], plain: State
) -> None:
    with pytest.raises(UserError, match=r"Did you mean toy\?"):
        checkpoint.convert(write(plain), tmp_path / "x", "tiy")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    with pytest.raises(UserError, match="and the toys' format"):
        checkpoint.open_checkpoint(tmp_path / "other")
    with pytest.raises(SystemExit):
        run(["checkpoint", "convert", "--help"])
    assert "safetensors, toy" in capsys.readouterr().out


@pytest.mark.usefixtures("toy")
def test_what_it_refuses_and_what_is_missing_is_named(
    plain: State, write: Callable[..., Path], tmp_path: Path
) -> None:
    empty = write({"target/unknown": np.zeros(2, np.float32)}, name="unknown/checkpoint_7")
    with pytest.raises(UserError, match="does not tell of its run"):
        checkpoint.convert(empty, tmp_path / "refused", "toy")
    assert not list(tmp_path.glob("refused*"))
    toys = checkpoint.convert(write(plain), tmp_path / "toys", "toy")
    next(toys.glob("*.npy")).unlink()
    with pytest.raises(UserError, match=r"1 leaf: target/.*missing \(its file"):
        checkpoint.open_checkpoint(toys).tree()
