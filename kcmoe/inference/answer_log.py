# SPDX-License-Identifier: Apache-2.0
"""Answers that survive whatever stops the program: a file that only grows, one line for a row.

The first line says what the answers belong to: input, task, model, settings. A line that a kill has torn is
cut off when the file is opened again, and the row answered anew, so that no row is lost or answered twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kcmoe.errors import UserError
from kcmoe.io import durable, json_text
from kcmoe.io.wording import human_bytes, listed

_MAGIC = '{"kcmoe_answers": 1, '


class AnswerLog:
    """An open log; made by `open_log`.

    Attributes:
      path: the file.
      rows: how many rows are answered.
      became: what `mark` was told before the program stopped; None if it was not told anything.
    """

    def __init__(self, path: str, descriptor: int, size: int, rows: int, became: int | None = None):
        self.path, self.rows, self.became = path, rows, became
        self._descriptor, self._size = descriptor, size

    def append(self, answers: Iterable[Any]) -> None:
        """Adds the answers to the next rows, and waits until they are on the disk.

        Raises:
          UserError: if there is no space; what was there before stays.
        """
        lines = [json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in answers]
        content = "".join(f"{line}\n" for line in lines).encode()
        try:
            _write(self._descriptor, content)
            os.fdatasync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise not_written(
                error, self.path, f"the answers to {self.rows:,} rows are kept"
            ) from error
        self._size += len(content)
        self.rows += len(lines)

    def mark(self, inode: int) -> None:
        """Notes of which file the output is about to be the name."""
        _write(self._descriptor, f"{inode}\n".encode())

    def read(self) -> Iterator[Any]:
        """Yields the answers in order; `UserError` if a line is damaged."""
        with open(self.path, "rb") as file:
            file.readline()
            for line in file:
                try:
                    yield json_text.parse(line)
                except ValueError:
                    raise UserError(f"{self.path} is damaged; remove it to begin anew") from None

    def close(self) -> None:
        """Closes the file, for other processes to open; without an answer in it nothing of it stays."""
        if not self.rows:
            self.remove()
        os.close(self._descriptor)

    def remove(self) -> None:
        """Removes the file, if that is not done already."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def exists(path: str) -> bool:
    """Whether there is a log, or the beginning of one.

    Raises:
      UserError: if something else has its name.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(_MAGIC))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not _MAGIC.encode().startswith(start):
        raise UserError(f"{path} is in the way: answers are kept there; move it elsewhere")
    return True


def open_log(path: str, facts: Mapping[str, Any], *, anew: bool = False) -> AnswerLog:
    """Opens the log of a run, with the answers that are there already, or begins one.

    Args:
      path: the file; nothing is done to one that is no log.
      facts: plain values, or mappings to such, each by the name that a message gives it.
      anew: whether to begin anew where the log is that of other facts; one without answers always does.

    Raises:
      UserError: if another process writes to it, it is that of other facts, or cannot be written.
    """
    exists(path)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): name an output in a folder of yours that is there"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UserError(f"another kcmoe predict is writing to {path}") from None
    try:
        return _opened(path, descriptor, facts, anew)
    except BaseException:
        os.close(descriptor)
        raise


def _opened(path: str, descriptor: int, facts: Mapping[str, Any], anew: bool) -> AnswerLog:
    with open(descriptor, "rb", closefd=False) as file:
        header = file.readline()
        if header.endswith(b"\n"):
            differs = _differences(header, facts)
            size, rows, became = len(header), 0, None
            for line in file:
                # Behind what was synced a machine that lost power may have left anything.
                if not line.endswith((b"]\n", b"null\n")) or line[:1] not in (b"[", b"n"):
                    became = int(line) if line[:-1].isdigit() and line[-1:] == b"\n" else None
                    break
                size, rows = size + len(line), rows + 1
            if not differs:
                os.ftruncate(descriptor, size)
                return AnswerLog(path, descriptor, size, rows, became)
            if rows and not anew:
                raise UserError(
                    f"{path} holds answers to the same command with {' and '.join(differs)}: give that "
                    "command again, name another output, or add --overwrite to begin anew"
                )
    os.ftruncate(descriptor, 0)
    header = f"{_MAGIC}{json.dumps(facts, ensure_ascii=False)[1:]}\n".encode()
    log = AnswerLog(path, descriptor, len(header), 0)
    try:
        _write(descriptor, header)
    except OSError as error:
        log.remove()
        raise not_written(error, path, "nothing is answered yet") from error
    return log


def not_written(error: OSError, path: str, kept: str) -> UserError:
    """The line for an error while writing: what the disk says, and what of the work is kept."""
    if error.errno not in durable.NO_SPACE:
        return UserError(f"{path} cannot be written ({error.strerror or error}); {kept}")
    free = human_bytes(shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free)
    return UserError(
        f"no space left to write {path} ({free} free there): free some and give the same command again; "
        f"{kept}"
    )


def _differences(header: bytes, facts: Mapping[str, Any]) -> list[str]:
    try:
        recorded = json_text.parse(header)
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict):
        return ["a damaged first line"]
    found = []
    for name, value in facts.items():
        before = recorded.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            names = [key for key in {**before, **value} if before.get(key) != value.get(key)]
            found += [f"another {name} of {listed(names)}"] if names else []
        elif before != value:
            known = isinstance(value, str) and not value.startswith("sha256:")
            told = f" ({before}, now {value})" if known else ""
            found.append(f"another {name}{told}")
    return found


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
