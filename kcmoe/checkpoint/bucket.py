# SPDX-License-Identifier: Apache-2.0
"""What is written to a bucket and removed there, through TensorStore, which reads it as well (`storage`).

A bucket renames nothing. So a checkpoint is there when the file that marks it is, as Orbax does it in
buckets: that file is written last and removed first. While it is not there, another says that a save or a
removal is under way, by which what a kill left is known. A folder without either may be a copy on its way or
somebody else's, and only a save of the same step removes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kcmoe.checkpoint.orbax_writing import COMMIT_FILE
from kcmoe.checkpoint.storage import Folder, step_of
from kcmoe.errors import UserError
from kcmoe.io.remote import Address
from kcmoe.io.wording import first_line

_MARKS = (COMMIT_FILE, "checkpoint")  # the second is written last by T5X's old format
_UNDER_WAY = "kcmoe_under_way"


class Bucket(Folder):
    """One folder of a bucket, to read from and to write to. Raises `UserError` where the bucket refuses."""

    def write(self, name: str, content: bytes) -> None:
        """Writes one file, which is wholly there afterwards, or as it was."""
        with self._errors("written"):
            self._store.write(name, content).result()

    def keys(self, start: str = "") -> list[str]:
        """The names of all files that begin with `start`, asked anew, in order."""
        import tensorstore as ts

        among = ts.KvStore.KeyRange(start, _after(start)) if start else ts.KvStore.KeyRange()
        with self._errors("listed"):
            return sorted(key.decode() for key in self._store.list(among).result())

    def remove(self, names: Collection[str]) -> None:
        """Removes files, side by side."""
        with self._errors("removed from"):
            for future in [self._store.write(name, None) for name in names]:
                future.result()

    def checkpoints(self) -> list[Address]:
        """The finished checkpoints below this folder, oldest first."""
        return [place for place, files in self._saves() if _finished(files)]

    def clean(self) -> list[Address]:
        """Removes what killed saves and removals left, and returns where it lay."""
        left = [
            place for place, files in self._saves() if _UNDER_WAY in files and not _finished(files)
        ]
        for place in left:
            self.remove_checkpoint(place.name)
        return left

    @contextmanager
    def under_way(self, name: str) -> Iterator[None]:
        """Saves the checkpoint `name` in the block, which writes its mark last; one of that name goes first.

        What is left if the block fails is no checkpoint.
        """
        self.remove_checkpoint(name)
        self.write(f"{name}/{_UNDER_WAY}", b"")
        try:
            yield
        except UserError:  # of all processes; after anything else some may still be writing
            with suppress(UserError):
                self.remove_checkpoint(name)
            raise
        with suppress(UserError):  # the mark of a finished save counts for more
            self.remove([f"{name}/{_UNDER_WAY}"])

    def remove_checkpoint(self, name: str) -> None:
        """Removes a checkpoint, its mark first, so that what a kill leaves is none."""
        keys, under_way = self.keys(f"{name}/"), f"{name}/{_UNDER_WAY}"
        marks = {f"{name}/{mark}" for mark in _MARKS}.intersection(keys)
        if marks:
            self.write(under_way, b"")
            self.remove(marks)
        self.remove([key for key in keys if key not in marks and key != under_way])
        if keys:
            self.remove([under_way])

    def upload(self, folder: Path) -> None:
        """Writes all files below `folder` here, marks of a finished save last, the outer after the inner."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        files.sort(key=lambda path: (path.name == COMMIT_FILE, -len(path.parts)))
        for path in files:
            self.write(path.relative_to(folder).as_posix(), path.read_bytes())

    def _saves(self) -> list[tuple[Address, set[str]]]:
        """Folders that are called like checkpoints and the names of their files, by step."""
        found: dict[int, set[str]] = {}
        for key in self.keys("checkpoint_"):
            name, _, inside = key.partition("/")
            step = step_of(name)
            if step is not None and inside:
                found.setdefault(step, set()).add(inside)
        return [(Address(f"{self.path}/checkpoint_{step}"), found[step]) for step in sorted(found)]

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"{self.path} cannot be {what}: {first_line(error)}") from error


def _finished(files: set[str]) -> bool:
    return not files.isdisjoint(_MARKS)


def _after(start: str) -> str:
    """The first text behind all that begin with `start`."""
    return start[:-1] + chr(ord(start[-1]) + 1)
