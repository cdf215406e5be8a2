# SPDX-License-Identifier: Apache-2.0
"""Reads a checkpoint of any format: which one it is, its tree, its leaves, its extra files.

`open_checkpoint(path)` looks at the files and returns the `Reader` of their format. Nothing is ever
unpickled: indexes are JSON or msgpack with a fixed set of types, values are raw numbers. A reader
believes nothing: what is missing, cut short, of another type or has another checksum is reported.
"""

from __future__ import annotations

import abc
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar

import numpy as np

from kcmoe.checkpoint import manifest
from kcmoe.checkpoint.leaves import STEP_PATH, ShapeDtype, checksum, shape_dtype
from kcmoe.checkpoint.storage import Damaged, Folder
from kcmoe.errors import UserError
from kcmoe.io.remote import is_remote

_AHEAD_BYTES = 128 << 20
_OWN_FILES = {manifest.NAME, "commit_success.txt", "_CHECKPOINT_METADATA", "checkpoint", "PINNED"}
UNFINISHED = re.compile(r"\.orbax-checkpoint-tmp|\.tmp-")
COMMIT_FILE = "commit_success.txt"


class Reader(abc.ABC):
    """One checkpoint, opened. Values are read when asked for.

    `format` is "t5x_orbax", "t5x_legacy" or "safetensors"; `path` the folder.
    """

    format: ClassVar[str]

    def __init__(self, folder: Folder):
        self.folder = folder
        self.path = folder.path
        self.manifest = manifest.load(folder)
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
            if self.manifest is not None:
                for path in sorted(self.manifest.leaves.keys() - tree.keys() - problems.keys()):
                    problems[path] = f"missing ({self.manifest.leaves[path][0]} was saved)"
                for path in sorted(tree.keys() - self.manifest.leaves.keys()):
                    problems[path] = f"{tree.pop(path)} is here, but was not saved"
            step = tree.get(STEP_PATH)
            if step is not None and step.dtype.kind == "f":
                # T5X restores with dtype='float32', the step too, and saves it so ever after.
                tree[STEP_PATH] = ShapeDtype(step.shape, np.dtype(np.int32))
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
        array = self._read(path)
        if path == STEP_PATH and array.dtype.kind == "f":
            if not np.all((array == np.trunc(array)) & (np.abs(array) < 2**31)):
                raise Damaged(f"{array} is no whole number of steps")
            array = array.astype(np.int32)
        if shape_dtype(array) != expected:
            raise Damaged(f"{shape_dtype(array)} was read where {expected} is declared")
        if self.manifest is not None and self.manifest.leaves[path] != (expected, checksum(array)):
            saved = self.manifest.leaves[path][0]
            raise Damaged(
                "its values differ from what was saved (checksum)"
                if saved == expected
                else f"{expected} is here, {saved} was saved"
            )
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
        leaf = self.scan()[0].get(STEP_PATH)
        if leaf is not None:
            if leaf.size != 1 or leaf.dtype.kind not in "iu":
                raise UserError(f"{self.path}: {STEP_PATH} is {leaf}, not one whole number")
            return int(self.read(STEP_PATH).reshape(()))
        if self.manifest is not None and self.manifest.step is not None:
            return self.manifest.step
        named = re.fullmatch(r"checkpoint_(\d+)", self.folder.name)
        if named:
            return int(named[1])
        raise UserError(
            f"{self.path} says nowhere at which step it was saved ({STEP_PATH} is missing)"
        )

    def extras(self) -> dict[str, bytes]:
        """Returns the small files saved with the state. Raises `UserError` if one is damaged."""
        if self.manifest is None:
            return {}
        found = {}
        for name, crc in self.manifest.extras.items():
            content = self.folder.read(name) if self.folder.exists(name) else None
            if content is None or manifest.bytes_checksum(content) != crc:
                wrong = (
                    "is missing" if content is None else "differs from what was saved (checksum)"
                )
                raise UserError(
                    f"{self.path} is damaged: its file {name} {wrong}; take another checkpoint"
                )
            found[name] = content
        return found


def _result(path: str, future: Future[np.ndarray]) -> tuple[str, np.ndarray | Damaged]:
    try:
        return path, future.result()
    except Damaged as damage:
        return path, damage


def describe_problems(what: str, problems: dict[str, str]) -> str:
    """Returns one line that names every leaf and what is wrong with it."""
    count = f"{len(problems)} {'leaf' if len(problems) == 1 else 'leaves'}"
    return f"{what}, {count}: " + "; ".join(f"{path}: {text}" for path, text in problems.items())


def open_checkpoint(path: str | os.PathLike[str]) -> Reader:
    """Opens a checkpoint of T5X (either format) or in safetensors, here or in a bucket.

    `path` is the checkpoint's folder (`dir/checkpoint_1000`), or its `checkpoint` or `.safetensors`
    file. Raises `UserError` if there is none, it is half-finished, or its format is unknown.
    """
    from kcmoe.checkpoint import legacy, orbax, safetensors

    text = os.fspath(path).rstrip("/")
    if not is_remote(text) and os.path.isfile(text):
        text = os.path.dirname(os.path.abspath(text))
    _require_folder(text)
    folder = Folder(text)
    for kind in (orbax.OrbaxReader, legacy.LegacyReader, safetensors.SafetensorsReader):
        if kind.recognises(folder):
            return kind(folder)
    raise UserError(_unknown(folder))


def _require_folder(path: str) -> None:
    if UNFINISHED.search(os.path.basename(path)):
        raise UserError(
            f"{path} is a half-finished save: take a finished checkpoint (checkpoint_<step>)"
        )
    if is_remote(path) or os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    raise UserError(f"there is no checkpoint {path}.{_neighbours(parent)}")


def _neighbours(folder: str) -> str:
    from kcmoe.checkpoint.manage import all_checkpoints

    found = [checkpoint.name for checkpoint in all_checkpoints(folder)]
    return f" There are {', '.join(found[-5:])} in {folder}." if found else ""


def _unknown(folder: Folder) -> str:
    below = {name.split("/")[0] for name in folder.names()}
    inside = sorted(name for name in below if re.fullmatch(r"checkpoint_\d+", name))
    if inside:
        return (
            f"{folder.path} is a model directory: name one of its checkpoints, such as "
            f"{folder.path}/{inside[-1]}"
        )
    names = sorted(folder.names())
    if not names:
        return f"{folder.path} is empty or does not exist"
    if any(name.endswith("/.zarray") for name in names):
        return f"{folder.path} is a half-finished save (arrays without an index): take another one"
    return (
        f"{folder.path} is in no format known here (it holds {', '.join(names[:5])}"
        f"{', ...' if len(names) > 5 else ''}); known are T5X's Orbax layout (state/_METADATA), "
        f"T5X's old "
        "format (a file named checkpoint) and safetensors"
    )
