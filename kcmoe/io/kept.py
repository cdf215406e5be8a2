# SPDX-License-Identifier: Apache-2.0
"""Things that take long to make and are wanted again, each a file in a folder of the person's own.

A file tells all facts that its content depends on, and is only used where they are the ones asked for: what
another version, machine or setting left is never taken for ours, only made anew. So is a file that is cut
short or changed. Content may hold machine code, so nothing is read that another user wrote or may write. No
fault of the folder is more than a reason (`Kept.fault`): whoever asks can always make the thing again.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kcmoe.io import hashing

_MAGIC = b"kcmoe kept 1\n"
_SUFFIX = ".kept"
_LEFTOVER_S = 3600  # a file half written by a process that died is older than this
MOST_BYTES = 512 << 20


class Kept:
    """A folder of kept things.

    Attributes:
      folder: where they are; None keeps nothing.
      fault: why something could not be read or kept, "" as long as all is well.
    """

    def __init__(self, folder: Path | None, most_bytes: int = MOST_BYTES):
        self.folder, self._most_bytes = folder, most_bytes
        self.fault = ""

    def find(self, facts: Mapping[str, Any]) -> bytes | None:
        """What was kept under exactly these facts; None if nothing was that may be used."""
        if self.folder is None:
            return None
        try:
            if not self._safe(os.stat(self.folder)):
                return None
            with open(self._path(facts), "rb") as file:
                if not self._safe(os.fstat(file.fileno())):
                    return None
                return _content(file.read(), facts)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.fault = f"{self.folder} cannot be read: {error.strerror}"
            return None

    def keep(self, facts: Mapping[str, Any], content: bytes) -> bool:
        """Keeps `content`, and lets go of the oldest things where the folder has grown too large."""
        if self.folder is None:
            return False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._safe(os.stat(self.folder)):
                return False
            header = json.dumps(_plain(facts), sort_keys=True).encode()
            check = hashing.sha256(header + content).encode()
            parts = (_MAGIC, b"%d\n" % len(header), check, header, content)
            self._write(self._path(facts), b"".join(parts))
            self._prune()
        except OSError as error:
            self.fault = f"{self.folder} cannot be written to: {error.strerror}"
            return False
        return True

    def _path(self, facts: Mapping[str, Any]) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashing.facts_digest(_plain(facts))[:32]}{_SUFFIX}"

    def _safe(self, found: os.stat_result) -> bool:
        """Whether only this user may write what was found."""
        if not hasattr(os, "geteuid"):
            return True
        if found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return True
        self.fault = f"{self.folder} is not used, because others may write to it"
        return False

    def _write(self, path: Path, content: bytes) -> None:
        # mkstemp lets nobody else read or write the file. It gets its name when it is complete.
        opened, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        try:
            with open(opened, "wb") as file:
                file.write(content)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def _prune(self) -> None:
        """Removes the oldest files beyond the limit, and what killed processes left."""
        assert self.folder is not None
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                files.append((found.st_mtime, found.st_size, path))
        newest = max((time for time, _, _ in files), default=0.0)
        total = 0
        for time, size, path in sorted(files, reverse=True):
            if path.suffix not in (_SUFFIX, ".tmp"):
                continue
            total += size
            if total > self._most_bytes or (path.suffix == ".tmp" and time < newest - _LEFTOVER_S):
                path.unlink(missing_ok=True)


def _plain(facts: Mapping[str, Any]) -> Any:
    """The facts as JSON has them: tuples are lists there."""
    return json.loads(json.dumps(facts))


def _content(raw: bytes, facts: Mapping[str, Any]) -> bytes | None:
    """The content of a file if it is whole and of these facts."""
    size, newline, rest = raw.removeprefix(_MAGIC).partition(b"\n")
    if not raw.startswith(_MAGIC) or not newline or not size.isdigit() or len(size) > 9:
        return None
    check, body = rest[:64], rest[64:]
    if hashing.sha256(body).encode() != check:
        return None
    header, content = body[: int(size)], body[int(size) :]
    return content if json.loads(header) == _plain(facts) else None
