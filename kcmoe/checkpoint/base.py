# SPDX-License-Identifier: Apache-2.0
"""What every format of checkpoints has: a reader, a writer, and how it is recognised.

A format is one file with a `Reader`, a `Writer` and a `Format` that names them, and one line in
`formats`. Nothing is ever unpickled: indexes are JSON or msgpack with a fixed set of types, values
are raw numbers. A reader reports whatever is missing, cut short, of another type or has another
checksum than was saved.
"""

from __future__ import annotations

import abc
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kcmoe.checkpoint import checksums, run_config
from kcmoe.checkpoint.checksums import checksum
from kcmoe.checkpoint.storage import Damaged, Folder, reason, step_of
from kcmoe.errors import UserError
from kcmoe.io.wording import human_bytes, listed, shortened
from kcmoe.tree import STEP, ShapeDtype, shape_dtype

_AHEAD_BYTES = 128 << 20


@dataclasses.dataclass(frozen=True)
class Format:
    """One format of checkpoints, as `formats` registers it.

    Attributes:
      name: what `--format` takes and `Reader.format` says.
      title: what messages call it, with the file that marks it.
      recognises: whether a folder is of this format; may raise `UserError` for one that cannot be read.
      finished: whether the save of a folder of this format ended well.
      reader, writer: their classes.
      parameters_only: it holds neither optimizer state nor step; a conversion leaves them behind.
      foreign: other programs own the folder: neither `kcmoe.json` nor extra files of ours go into it.
      read_by_t5x: T5X restores from it.
    """

    name: str
    title: str
    recognises: Callable[[Folder], bool]
    finished: Callable[[Folder], bool]
    reader: type[Reader]
    writer: type[Writer]
    parameters_only: bool = False
    foreign: bool = False
    read_by_t5x: bool = False


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where the leaves of a new checkpoint come from.

    Attributes:
      step: the training step.
      path: the checkpoint that is converted, None for one that training saves.
      macros: what is recorded of its run, by macro name; {} where nothing is, and in training.
    """

    step: int | None = None
    path: str | None = None
    macros: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Writer(abc.ABC):
    """Writes the leaves of `tree` into `folder`, which gets its name when the save is finished."""

    def __init__(self, folder: Path, tree: Mapping[str, ShapeDtype], about: Provenance):
        self.folder, self.tree, self.about = folder, tree, about

    @abc.abstractmethod
    def add(self, path: str, array: np.ndarray) -> None:
        """Writes one leaf; they come in any order. Raises OSError or ValueError if the disk refuses."""

    @abc.abstractmethod
    def finish(self, final: str) -> None:
        """Writes what marks the save as complete; `final` is the path the folder will have."""


class Reader(abc.ABC):
    """One checkpoint, opened. Values are read when they are asked for.

    `format` is the name under which the format is registered, `path` the folder.
    """

    format: ClassVar[str]

    def __init__(self, folder: Folder):
        self.folder = folder
        self.path = folder.path
        self.saved = checksums.load(folder)
        self._scanned: tuple[dict[str, ShapeDtype], dict[str, str]] | None = None

    @abc.abstractmethod
    def _scan(self) -> tuple[dict[str, ShapeDtype], dict[str, str]]:
        """Returns the readable leaves, and path -> what is wrong for the others."""

    @abc.abstractmethod
    def _read(self, path: str) -> np.ndarray:
        """Returns the values of a leaf of `_scan`. Raises `Damaged`."""

    def scan(self) -> tuple[dict[str, ShapeDtype], dict[str, str]]:
        """Returns the tree and the problems found in it without reading values, both by path."""
        if self._scanned is None:
            tree, problems = self._scan()
            if self.saved is not None:
                for path in sorted(self.saved.leaves.keys() - tree.keys() - problems.keys()):
                    problems[path] = f"missing ({self.saved.leaves[path][0]} was saved)"
                for path in sorted(tree.keys() - self.saved.leaves.keys()):
                    problems[path] = f"{tree.pop(path)} is here, but was not saved"
            step = tree.get(STEP)
            if step is not None and step.dtype.kind == "f":
                # T5X that restores with dtype='float32' casts the step, too, and then saves it so.
                tree[STEP] = ShapeDtype(step.shape, np.dtype(np.int32))
            self._scanned = dict(sorted(tree.items())), problems
        return self._scanned

    def tree(self) -> dict[str, ShapeDtype]:
        """Returns path -> shape and dtype. Raises `UserError` naming every leaf that is damaged."""
        tree, problems = self.scan()
        if problems:
            raise UserError(describe_problems(f"{self.path} is damaged", problems))
        return tree

    def read(self, path: str) -> np.ndarray:
        """Returns the values of one leaf, checked. Raises `UserError`."""
        if path not in self.tree():
            raise UserError(
                f"{self.path} holds no {path}: `kcmoe checkpoint inspect` lists what it holds"
            )
        try:
            return self.read_checked(path)
        except Damaged as damage:
            raise UserError(
                describe_problems(f"{self.path} is damaged", {path: str(damage)})
            ) from damage

    def read_checked(self, path: str) -> np.ndarray:
        """Returns one leaf of `scan()` after all checks. Raises `Damaged`."""
        expected = self.scan()[0][path]
        if expected.nbytes > (memory := _memory_bytes()):
            raise Damaged(
                f"{expected} is {human_bytes(expected.nbytes)}, and this machine has "
                f"{human_bytes(memory)} of memory"
            )
        try:
            array = self._read(path)
        except (ValueError, OverflowError, MemoryError) as error:
            raise Damaged(reason(error)) from error
        if path == STEP and array.dtype.kind == "f":
            if not np.all((array == np.trunc(array)) & (np.abs(array) < 2**31)):
                raise Damaged(f"{array} is no whole number of steps")
            array = array.astype(np.int32)
        if shape_dtype(array) != expected:
            raise Damaged(f"{shape_dtype(array)} was read where {expected} is declared")
        if self.saved is not None:
            saved, crc = self.saved.leaves[path]
            if saved != expected:
                raise Damaged(f"{expected} is here, {saved} was saved")
            if crc != checksum(array):
                raise Damaged("its values differ from what was saved (checksum)")
        return array

    def read_all(self, paths: Iterable[str]) -> Iterator[tuple[str, np.ndarray | Damaged]]:
        """Yields each path with its values, or with what is wrong; reads a little ahead."""
        tree = self.scan()[0]
        pending: deque[tuple[str, Future[np.ndarray]]] = deque()
        ahead = 0
        with ThreadPoolExecutor(max_workers=4) as pool:
            for path in paths:
                while pending and ahead + tree[path].nbytes > _AHEAD_BYTES:
                    ahead -= tree[pending[0][0]].nbytes
                    yield _result(*pending.popleft())
                ahead += tree[path].nbytes
                pending.append((path, pool.submit(self.read_checked, path)))
            while pending:
                yield _result(*pending.popleft())

    @property
    def step(self) -> int:
        """The training step. Raises `UserError` if the checkpoint holds none or it is damaged."""
        leaf = self.scan()[0].get(STEP)
        if leaf is not None:
            if leaf.size != 1 or leaf.dtype.kind not in "iu":
                raise UserError(f"{self.path}: {STEP} is {leaf}, not one whole number")
            return int(self.read(STEP).reshape(()))
        if self.saved is not None and self.saved.step is not None:
            return self.saved.step
        named = step_of(self.path)
        if named is not None:
            return named
        raise UserError(f"{self.path} does not tell at which step it was saved ({STEP} is missing)")

    def recorded(self) -> dict[str, Any]:
        """Returns what is recorded of the run: macro name -> value, {} where nothing is."""
        return run_config.recorded(self.path)

    def extras(self) -> dict[str, bytes]:
        """Returns the small files saved with the state. Raises `UserError` if one is damaged."""
        if self.saved is None:
            return {}
        found = {}
        for name, crc in self.saved.extras.items():
            content = self.folder.read(name) if self.folder.exists(name) else None
            if content is None or checksums.bytes_checksum(content) != crc:
                missing = content is None
                wrong = "is missing" if missing else "differs from what was saved (checksum)"
                raise UserError(
                    f"{self.path} is damaged: its file {name} {wrong}; take another checkpoint"
                )
            found[name] = content
        return found


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _result(path: str, future: Future[np.ndarray]) -> tuple[str, np.ndarray | Damaged]:
    try:
        return path, future.result()
    except Damaged as damage:
        return path, damage


def describe_problems(what: str, problems: dict[str, str]) -> str:
    """Returns one line with the number of leaves, and of the first few what is wrong with them."""
    count = f"{len(problems)} {'leaf' if len(problems) == 1 else 'leaves'}"
    alike: dict[str, list[str]] = {}
    for path, text in problems.items():
        alike.setdefault(text, []).append(path)
    texts = [
        f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: {shortened(text, 150)}"
        for text, paths in alike.items()
    ]
    return f"{what}, {count}: {listed(texts, 6, '; ')}"
