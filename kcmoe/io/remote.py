# SPDX-License-Identifier: Apache-2.0
"""The one door to buckets: fsspec, set so that it works behind a proxy and without permissions to spare.

Checkpoints alone go another way, through TensorStore (`kcmoe.checkpoint.storage`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any, cast

from kcmoe.io.wording import first_line


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is in a bucket or on a server."""
    return "://" in os.fspath(path)


class Address(os.PathLike[str]):
    """A folder or file in a bucket: what `pathlib.Path`, which shortens //, is for this machine.

    Attributes:
      name: the last part.
      parent: the address without it; a bucket is its own.
    """

    def __init__(self, text: str | os.PathLike[str]):
        self._text = os.fspath(text).rstrip("/")

    def __fspath__(self) -> str:
        return self._text

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Address({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self._text}/{name}")

    @property
    def name(self) -> str:
        return self._text.rpartition("/")[2]

    @property
    def parent(self) -> Address:
        above = self._text.rpartition("/")[0]
        return Address(above) if is_remote(above) else self


Place = Path | Address
"""Where something lies: on this machine, or in a bucket."""


def place(path: str | os.PathLike[str]) -> Place:
    """`path` as what it is, a place in a bucket or on this machine."""
    return Address(path) if is_remote(path) else Path(path)


def fsspec() -> ModuleType:
    """fsspec, to be imported this way before anything is opened."""
    # gcsfs asks over gRPC what kind of bucket it has. That call knows no HTTP proxy and waits a minute
    # for it; plain reads and lists do without.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # It also prints tracebacks of what it raises, and a refused address is to be one line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    import fsspec as module

    return module


def open_binary(path: str) -> IO[bytes]:
    """A file opened for reading, local or remote; whatever a server does is an OSError, now or later."""
    if not is_remote(path):
        refuse_devices(path)
        return open(path, "rb")
    with os_errors():
        return cast(IO[bytes], _File(fsspec().open(path, "rb").open()))


def refuse_devices(path: str | os.PathLike[str]) -> None:
    """Raises OSError for a device or a pipe, from which reading may never end or never begin.

    Pipes that a shell makes for `<(command)` are read.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISFIFO(mode) and os.fspath(path).startswith(("/dev/fd/", "/proc/self/fd/")):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file")


def read_bytes(path: str) -> bytes:
    """A whole file, local or remote; raises OSError, and ValueError or ImportError for an odd address."""
    with open_binary(path) as file:
        return file.read()


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Turns what libraries of servers and buckets raise, mostly exceptions of their own, into OSError."""
    try:
        yield
    except FileNotFoundError as error:
        # fsspec says so of whatever it cannot reach.
        if error.__cause__ is None or getattr(error.__cause__, "status", 0) == 404:
            raise
        raise OSError(first_line(error.__cause__)) from error
    except (OSError, ValueError, ImportError):
        raise
    except Exception as error:
        raise OSError(first_line(error)) from error


class _File(io.RawIOBase):
    """What fsspec opened, with errors of one kind."""

    def __init__(self, file: IO[bytes]):
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def read(self, size: int = -1) -> bytes:
        with os_errors():
            return self._file.read(size)

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()
