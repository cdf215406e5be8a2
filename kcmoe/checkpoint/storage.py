# SPDX-License-Identifier: Apache-2.0
"""One checkpoint folder to read from: on this disk, or in a bucket (gs://, s3://).

TensorStore's key-value stores serve both, so every format is read the same way from either. This
file knows folders and bytes, nothing of formats. Buckets are read with the credentials TensorStore
finds (`gcloud auth application-default login`); public ones need none. TensorStore is imported when it is
needed: a folder of safetensors on this disk is read without it.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kcmoe.errors import UserError
from kcmoe.io.remote import is_remote
from kcmoe.io.wording import first_line, shortened

if TYPE_CHECKING:
    import tensorstore as ts

_NAMED = re.compile(r"checkpoint_(0|[1-9]\d*)")


def step_of(checkpoint: str | os.PathLike[str]) -> int | None:
    """Returns N of `.../checkpoint_N`, or None for any other name."""
    found = _NAMED.fullmatch(os.fspath(checkpoint).rstrip("/").rsplit("/", 1)[-1])
    return int(found[1]) if found else None


def _plain_size(path: str) -> int | None:
    """Returns the bytes of a plain file; None where there is none, or what is there is something else."""
    try:
        found = os.stat(path)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


class Damaged(Exception):
    """A file of the checkpoint is missing, cut short or makes no sense. The text says which."""


class Unreachable(UserError):
    """A bucket did not answer, or refused."""


# What TensorStore's text has -> what it means. It names the file of a database at most by a byte range of it.
_REASONS = (
    (r"NOT_FOUND: .*/([^/\"]+)\"", r"its file \1 is missing"),
    (r"(?i)truncated.* at byte 0; at uncompressed byte 0", "its file is missing or empty"),
    (r"(?i)truncated|OUT_OF_RANGE|unexpected end|end of file", "its file is cut off"),
    (
        r"(?i)corrupt|decompress|frame descriptor|error decoding|zlib|gzip|inflate|crc",
        "its bytes are damaged",
    ),
)


def reason(error: BaseException) -> str:
    """Returns in a few words why TensorStore could not read something; those of many leaves are equal."""
    text = first_line(error)
    for sign, words in _REASONS:
        if found := re.search(sign, text):
            return found.expand(words)
    return f"cannot be read: {shortened(text, 120)}"


class Folder:
    """The files below one folder. Raises `UserError` if the folder cannot be reached."""

    def __init__(self, path: str | os.PathLike[str]):
        text = os.fspath(path)
        self.remote = is_remote(text)
        self.path = text.rstrip("/") if self.remote else os.path.abspath(text)
        self._spec = {"driver": "file", "path": self.path + "/"}
        if self.remote:
            self._open()
        self._names: frozenset[str] | None = None
        self._sizes: dict[str, int] | None = None

    @functools.cached_property
    def context(self) -> ts.Context:
        """What TensorStore shares between all that is read from here."""
        import tensorstore as ts

        # A few retries for a bucket that fails once; without a network an error comes within seconds.
        retries = {"max_retries": 5, "max_delay": "4s"}
        return ts.Context(
            {
                "cache_pool": {"total_bytes_limit": 64_000_000},
                **{f"{kind}_request_retries": retries for kind in ("gcs", "http", "s3")},
            }
        )

    def _open(self) -> None:
        import tensorstore as ts

        try:
            self._spec = ts.KvStore.Spec(self.path + "/").to_json()
            self._store = ts.KvStore.open(self._spec, context=self.context).result()
        except ValueError as error:
            raise UserError(f"{self.path} cannot be opened: {first_line(error)}") from error

    def names(self) -> frozenset[str]:
        """Returns the relative names of all files below the folder (listed once)."""
        if self._names is None:
            if self.remote:
                self._names = frozenset(key.decode() for key in self._list())
            else:
                self._names = frozenset(self.sizes() or ())
        return self._names

    def sizes(self) -> Mapping[str, int] | None:
        """Returns name -> bytes of all files that are there to be read; None in a bucket.

        A link that leads nowhere and whatever is not a plain file are not there.
        """
        if self.remote:
            return None
        if self._sizes is None:
            self._sizes = {}
            for parent, _, names in os.walk(self.path, onerror=self._refuse):
                for name in names:
                    path = os.path.join(parent, name)
                    size = _plain_size(path)
                    if size is not None:
                        self._sizes[os.path.relpath(path, self.path)] = size
        return self._sizes

    def _refuse(self, error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    def _list(self) -> list[bytes]:
        try:
            return list(self._store.list().result())
        except (ValueError, RuntimeError) as error:
            raise Unreachable(f"{self.path} cannot be listed: {first_line(error)}") from error

    def exists(self, name: str) -> bool:
        """Tells whether the file `name` is there."""
        if not self.remote:
            return _plain_size(os.path.join(self.path, name)) is not None
        return self._get(name) is not None

    def read(self, name: str) -> bytes:
        """Returns the content of a (small) file. Raises `Damaged` if it is not there."""
        content = self._get(name)
        if content is None:
            raise Damaged(f"the file {name} is missing")
        return content

    def _get(self, name: str) -> bytes | None:
        if not self.remote:
            path = os.path.join(self.path, name)
            if _plain_size(path) is None:
                return None
            try:
                with open(path, "rb") as file:
                    return file.read()
            except OSError as error:
                raise UserError(f"{self.path}/{name} cannot be read: {error.strerror}") from error
        try:
            found = self._store.read(name).result()
        except (ValueError, RuntimeError) as error:
            raise Unreachable(f"{self.path}/{name} cannot be read: {first_line(error)}") from error
        return None if found.state == "missing" else found.value

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """Returns the content of those of many small files that are there, asked for all at once."""
        if not self.remote:
            found = {name: self._get(name) for name in names}
            return {name: content for name, content in found.items() if content is not None}
        futures = {name: self._store.read(name) for name in names}
        try:
            results = {name: future.result() for name, future in futures.items()}
        except (ValueError, RuntimeError) as error:
            raise Unreachable(f"{self.path} cannot be read: {first_line(error)}") from error
        return {name: found.value for name, found in results.items() if found.state != "missing"}

    def kvstore(self, below: str = "") -> dict[str, Any]:
        """Returns TensorStore's spec of the subfolder `below` ("" or "name/")."""
        return {**self._spec, "path": self._spec.get("path", "") + below}
