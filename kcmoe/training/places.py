# SPDX-License-Identifier: Apache-2.0
"""Where MODEL_DIR lies, on a disk or in a bucket: small files, records, and what keeps a second run out.

Checkpoints go to either through `kcmoe.checkpoint`. Records grow by a line a step, which no bucket can take:
they are written to a folder of this machine, and what is new is copied to the bucket before every checkpoint
and at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from kcmoe.checkpoint.run_config import CONFIG_FILE
from kcmoe.errors import UserError
from kcmoe.io import durable
from kcmoe.io.remote import Address, Place, is_remote

_RECORDS = ("metrics.jsonl", "train/", "eval/")


class RunPlace(Protocol):
    """What a run needs of the place that MODEL_DIR names.

    Attributes:
      path: the place.
      records: a folder of this machine with its records and its config.gin.
    """

    path: Place
    records: Path

    def locked(self, say: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
        """Keeps a second run out, or says that nothing does, while the first host writes."""

    def read(self, name: str) -> bytes | None:
        """A small file, None where there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file, at once or not at all. Raises `UserError`."""

    def remove(self, name: str) -> None:
        """Removes a small file, if it is there."""

    def publish(self) -> None:
        """Returns when the records so far are in the place."""

    def free_bytes(self) -> int | None:
        """What can still be written there; None where there is no end."""


def find(model_dir: str) -> RunPlace:
    """The place that MODEL_DIR names. Raises `UserError` if it cannot be written to or reached."""
    return InBucket(model_dir) if is_remote(model_dir) else OnDisk(model_dir)


class OnDisk:
    """A folder of this machine, or of a file system that hosts share."""

    def __init__(self, text: str):
        self.records = _writable(text)
        self.path: Place = self.records

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[None]:
        """Makes the folder and keeps a second run out of it; a killed run leaves no lock behind."""
        lock = self.records / ".lock"
        with durable.user_errors(self.path):
            self.records.mkdir(parents=True, exist_ok=True)
            file = open(lock, "w")  # noqa: SIM115
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another kcmoe train is writing to MODEL_DIR {self.path}; wait for it, stop it, "
                    "or take another MODEL_DIR"
                ) from None
            except OSError as error:
                say(
                    f"warning     {self.path} cannot be locked ({error.strerror}): nothing keeps a "
                    "second kcmoe train out of it, so start none"
                )
            try:
                yield
            finally:
                if list(self.records.iterdir()) == [lock]:  # refused before anything was written
                    lock.unlink()
                    self.records.rmdir()

    def read(self, name: str) -> bytes | None:
        try:
            return (self.records / name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, content: bytes) -> None:
        durable.write_file(self.records / name, content)

    def remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.records / name).unlink(missing_ok=True)

    def publish(self) -> None:
        """Nothing is left to do."""

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(_existing(self.records)).free


class InBucket:
    """A folder of a bucket; its records and config.gin are fetched to this machine, and brought back."""

    def __init__(self, text: str):
        from kcmoe.checkpoint.bucket import Bucket

        self.path: Place = Address(text)
        self._bucket = Bucket(text)
        self.records = Path(tempfile.mkdtemp(prefix="kcmoe-"))
        weakref.finalize(self, shutil.rmtree, self.records, ignore_errors=True)
        self._parts: dict[
            str, list[tuple[int, int]]
        ] = {}  # file -> first byte of each object, and its end
        if (config := self.read(CONFIG_FILE)) is not None:
            (self.records / CONFIG_FILE).write_bytes(config)

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[None]:
        """Fetches the records, and brings them back at the end; a bucket has no locks."""
        say(
            f"note        {self.path} is in a bucket, which has no locks: nothing keeps a second kcmoe train "
            "out of it, so start none"
        )
        self.fetch_records()
        try:
            yield
        finally:
            self.publish()

    def fetch_records(self) -> Path:
        """Fetches all records there are, and returns the folder that then holds them and config.gin.

        It is there as long as this object.
        """
        keys = [key for start in _RECORDS for key in self._bucket.keys(start)]
        found = [(*_file_and_offset(key), key) for key in keys]
        self._parts = {}
        for name, offset, key in sorted(found):
            content = self.read(key) or b""
            path = self.records / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab" if offset else "wb") as file:
                if (
                    file.tell() == offset
                ):  # else one before it is lost, and this one goes when it is cut
                    file.write(content)
            self._parts.setdefault(name, []).append((offset, offset + len(content)))
        return self.records

    def read(self, name: str) -> bytes | None:
        return self._bucket.read_many([name]).get(name)

    def write(self, name: str, content: bytes) -> None:
        self._bucket.write(name, content)

    def remove(self, name: str) -> None:
        with contextlib.suppress(UserError):
            self._bucket.remove([name])

    def publish(self) -> None:
        for path in sorted(self.records.rglob("*")):
            name = path.relative_to(self.records).as_posix()
            if path.is_file() and name.startswith(_RECORDS):
                self._publish(name, path)

    def _publish(self, name: str, path: Path) -> None:
        """Brings the objects of one file to what it is: it may have been cut since, or have grown."""
        size, parts = path.stat().st_size, self._parts.setdefault(name, [])
        beyond = [part for part in parts if part[1] > size]
        kept = [part for part in parts if part[1] <= size]
        start = kept[-1][1] if kept else 0
        if size > start:
            with open(path, "rb") as file:
                file.seek(start)
                self._bucket.write(_object(name, start), file.read(size - start))
            kept.append((start, size))
        self._bucket.remove([_object(name, part[0]) for part in beyond if part[0] >= size])
        self._parts[name] = kept

    def free_bytes(self) -> int | None:
        return None


def _object(name: str, offset: int) -> str:
    """What is behind the first `offset` bytes of a file is an object of its own: objects do not grow."""
    return f"{name}.from-{offset}" if offset else name


def _file_and_offset(key: str) -> tuple[str, int]:
    name, offset = re.fullmatch(r"(.+?)(?:\.from-(\d+))?", key).groups()  # type: ignore[union-attr]
    return name, int(offset or 0)


def _writable(text: str) -> Path:
    """The folder that MODEL_DIR names, if it can be written to or made."""
    path = Path(text)
    above = _existing(path)
    if not above.is_dir():
        raise UserError(f"MODEL_DIR {path} cannot be written to: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f"MODEL_DIR {path} cannot be written to: there is no permission to write to {above}"
        )
    return path


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = path.absolute()
    # `os.path.exists`, as `Path.exists` raises where looking is not permitted.
    return next(folder for folder in (path, *path.parents) if os.path.exists(folder))
