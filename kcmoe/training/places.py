# SPDX-License-Identifier: Apache-2.0
"""Where MODEL_DIR lies, on a disk or in a bucket: small files, records, and what keeps a second run out.

Checkpoints go to either through `kcmoe.checkpoint`. Records grow by a line a step, which no bucket can take:
they are written to a folder of this machine, and what is new is copied to the bucket before every checkpoint
and at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
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
from kcmoe.io.wording import first_line
from kcmoe.training import records

_AT_ONCE = 64  # objects asked for side by side


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
        with self._here():
            self.records = Path(tempfile.mkdtemp(prefix="kcmoe-"))
        weakref.finalize(self, shutil.rmtree, self.records, ignore_errors=True)
        # file -> first byte of each of its objects -> the byte behind that object
        self._parts: dict[str, dict[int, int]] = {}
        if (config := self.read(CONFIG_FILE)) is not None:
            with self._here():
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
        keys = [key for start in records.PLACES for key in self._bucket.keys(start)]
        found = {key: part for key in keys if (part := records.part_of(key))}
        self._parts = {}
        waiting = iter(found)
        while batch := list(itertools.islice(waiting, _AT_ONCE)):
            for key, content in self._bucket.read_many(batch).items():
                name, offset = found[key]
                self._parts.setdefault(name, {})[offset] = offset + len(content)
                with self._here():
                    (self.records / key).parent.mkdir(parents=True, exist_ok=True)
                    (self.records / key).write_bytes(content)
        with self._here():
            records.join(self.records)
        return self.records

    def read(self, name: str) -> bytes | None:
        return self._bucket.read_many([name]).get(name)

    def write(self, name: str, content: bytes) -> None:
        self._bucket.write(name, content)

    def remove(self, name: str) -> None:
        with contextlib.suppress(UserError):
            self._bucket.remove([name])

    def publish(self) -> None:
        with self._here():
            found = list(records.files(self.records))
        for path, name, first_byte in found:
            if first_byte == 0:
                self._publish(name, path)

    def _publish(self, name: str, path: Path) -> None:
        """Brings the objects of one file to what it is: it may have been cut since, or have grown."""
        size, before = path.stat().st_size, self._parts.get(name, {})
        now: dict[int, int] = {}
        end = 0
        while end < before.get(end, 0) <= size:
            now[end] = end = before[end]
        if size > end:
            with self._here(), open(path, "rb") as file:
                file.seek(end)
                content = file.read(size - end)
            self._bucket.write(records.part_name(name, end), content)
            now[end] = size
        self._bucket.remove(
            [records.part_name(name, first) for first in before if first not in now]
        )
        self._parts[name] = now

    def free_bytes(self) -> int | None:
        return None

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        """What is done on this machine, so that its refusals are told from the bucket's."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the records of {self.path} are kept in a temporary folder of this machine first, which "
                f"cannot be used: {first_line(error)}; name another with the variable TMPDIR"
            ) from error


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
