# SPDX-License-Identifier: Apache-2.0
"""What is written to a bucket and removed there, through TensorStore, which reads it as well (`storage`).

A bucket renames nothing. So a checkpoint is there when the file that marks it is, as Orbax does it in
buckets: that file is written last and removed first, and what has none is what a killed save left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from kcmoe.checkpoint.orbax_writing import COMMIT_FILE
from kcmoe.checkpoint.storage import Folder, step_of
from kcmoe.errors import UserError
from kcmoe.io.remote import Address
from kcmoe.io.wording import first_line

_LEGACY_INDEX = "checkpoint"  # written last by T5X's old format


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
        finished, _ = self._saves()
        return [Address(f"{self.path}/checkpoint_{step}") for step in sorted(finished)]

    def clean(self) -> list[Address]:
        """Removes what killed saves and removals left, and returns where it lay."""
        _, unfinished = self._saves()
        for step in unfinished:
            self.remove_checkpoint(f"checkpoint_{step}")
        return [Address(f"{self.path}/checkpoint_{step}") for step in sorted(unfinished)]

    def remove_checkpoint(self, name: str) -> None:
        """Removes a checkpoint, its mark first, so that what a kill leaves is none."""
        keys = self.keys(f"{name}/")
        marks = [
            key for key in keys if key.removeprefix(f"{name}/") in (COMMIT_FILE, _LEGACY_INDEX)
        ]
        self.remove(marks)
        self.remove([key for key in keys if key not in marks])

    def upload(self, folder: Path) -> None:
        """Writes all files below `folder` here, marks of a finished save last, the outer after the inner."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        files.sort(key=lambda path: (path.name == COMMIT_FILE, -len(path.parts)))
        for path in files:
            self.write(path.relative_to(folder).as_posix(), path.read_bytes())

    def _saves(self) -> tuple[set[int], set[int]]:
        """The steps of finished checkpoints, and of those that are not."""
        finished, begun = set(), set()
        for key in self.keys("checkpoint_"):
            name, _, inside = key.partition("/")
            step = step_of(name)
            if step is not None and inside:
                begun.add(step)
                if inside in (COMMIT_FILE, _LEGACY_INDEX):
                    finished.add(step)
        return finished, begun - finished

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"{self.path} cannot be {what}: {first_line(error)}") from error


def _after(start: str) -> str:
    """The first text behind all that begin with `start`."""
    return start[:-1] + chr(ord(start[-1]) + 1)
