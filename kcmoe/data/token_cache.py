# SPDX-License-Identifier: Apache-2.0
"""A corpus as plain files of token ids, built on first use, so that any token is one read away.

Each source file becomes a folder with `tokens.bin` (ids one after another, little-endian), `ends.bin`
(where each document ends) and `tokens.json` (source, sizes, checksums, what was left out). A folder
appears whole or not at all; an interrupted build goes on with the next file. The name of a folder
depends on the source's size and time, the vocabulary and the settings, so a changed source is read anew.
Reads use `pread`, not a memory map: a file that shrinks gives an error with its name, not a dead process.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe.data.splits import held_out
from kcmoe.errors import UserError
from kcmoe.io import hashing, json_text, remote
from kcmoe.io.wording import first_line

FACTS = "tokens.json"
_FORMER_FACTS = "manifest.json"  # in folders built before this name was left to prepared corpora


@dataclasses.dataclass(frozen=True)
class Source:
    """How a corpus file becomes tokens; everything that decides which ids come out.

    Attributes:
      column: the text.
      encoding: of text files.
      holdout: share of documents that belongs to validation, 0 for none.
      keep_held_out: whether this is the validation side.
      strict: stop at damaged places rather than leave them out.
    """

    column: str = "text"
    encoding: str = "utf-8"
    holdout: float = 0.0
    keep_held_out: bool = False
    strict: bool = True

    def keeps(self, text: str) -> bool:
        """Whether a document belongs to this side of the hold-out."""
        return not self.holdout or held_out(text, self.holdout) == self.keep_held_out


def stamp(path: str) -> dict[str, Any]:
    """Size and time (or a bucket's checksum) of a file: changes when the file does.

    Raises:
      UserError: if the file is gone.
    """
    try:
        if remote.is_remote(path):
            filesystem, name = remote.fsspec().core.url_to_fs(path)
            info = filesystem.info(name)
            version = info.get("md5Hash") or info.get("etag") or info.get("mtime")
            return {"path": path, "size": info["size"], "version": str(version)}
        status = os.stat(path)
        return {
            "path": os.path.abspath(path),
            "size": status.st_size,
            "version": status.st_mtime_ns,
        }
    except (OSError, KeyError) as error:
        raise UserError(f"{path} is gone or cannot be read ({first_line(error)})") from None


def facts_file(folder: Path) -> Path | None:
    """The file that says what is in a folder of the cache; None where there is no such folder yet."""
    found = (folder / name for name in (FACTS, _FORMER_FACTS))
    return next((path for path in found if path.exists()), None)


class Shard:
    """The tokens of one source file, in the cache."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            text = (facts_file(folder) or folder / FACTS).read_text(encoding="utf-8")
            self.facts: dict[str, Any] = json_text.parse(text)
            self.num_tokens: int = self.facts["tokens"]
            self.num_documents: int = self.facts["documents"]
            self.dtype = np.dtype(self.facts["dtype"])
            self._check_files()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the token cache {folder} is damaged ({first_line(error)}); remove it and it is built again"
            ) from None
        self._handle: int | None = None

    def _check_files(self) -> None:
        for name, known in self.facts["files"].items():
            status = os.stat(self.folder / name)
            if status.st_size != known["size"]:
                raise ValueError(f"{name} has {status.st_size} bytes, not {known['size']}")
            if (
                status.st_mtime_ns != known["mtime_ns"]
                and hashing.file_digest(self.folder / name) != known["sha256"]
            ):
                raise ValueError(f"{name} does not match its checksum")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` ids from token `start` on."""
        if self._handle is None:
            try:
                self._handle = os.open(self.folder / "tokens.bin", os.O_RDONLY)
            except OSError as error:
                raise UserError(
                    f"the token cache {self.folder} is gone ({error.strerror})"
                ) from None
        size = self.dtype.itemsize
        data = os.pread(self._handle, count * size, start * size)
        if len(data) != count * size:
            raise UserError(
                f"the token cache {self.folder} was cut while it was read; remove that folder"
            )
        return np.frombuffer(data, self.dtype)

    def ends(self, limit: int = -1) -> np.ndarray:
        """int64 [documents], the token after each of the first `limit` documents; read at each call."""
        return np.fromfile(self.folder / "ends.bin", "<i8", count=limit)


class TokenCache:
    """The shards of a corpus as one endless ring of tokens."""

    def __init__(self, shards: Sequence[Shard]):
        self.shards = list(shards)
        self._starts = np.zeros(len(self.shards) + 1, np.int64)
        np.cumsum([shard.num_tokens for shard in self.shards], out=self._starts[1:])
        self.num_tokens = int(self._starts[-1])
        self.num_documents = sum(shard.num_documents for shard in self.shards)
        checksums = [shard.facts["files"]["tokens.bin"]["sha256"] for shard in self.shards]
        self.digest = hashing.sha256("".join(checksums).encode())

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Windows of the ring; the last token is followed by the first.

        Args:
          starts: int64 [N], each in [0, num_tokens).
          length: tokens per window.

        Returns:
          int32 [N, length].
        """
        out = np.empty((len(starts), length), np.int32)
        shards = np.searchsorted(self._starts, starts, side="right") - 1
        for row, (start, shard) in enumerate(zip(starts.tolist(), shards.tolist(), strict=True)):
            filled, offset = 0, start - int(self._starts[shard])
            while filled < length:
                take = min(length - filled, self.shards[shard].num_tokens - offset)
                if take > 0:
                    out[row, filled : filled + take] = self.shards[shard].read(offset, take)
                    filled += take
                shard, offset = (shard + 1) % len(self.shards), 0
        return out

    def document_lengths(self, limit: int) -> np.ndarray:
        """Tokens of the first `limit` documents, int64 [N]."""
        sizes: list[np.ndarray] = []
        for shard in self.shards:
            if limit <= 0:
                break
            sizes.append(np.diff(shard.ends(limit), prepend=0))
            limit -= sizes[-1].size
        return np.concatenate(sizes)

    def changed_sources(self) -> list[str]:
        """Source files that vanished or changed since they were read, each with the reason."""
        changed = []
        for shard in self.shards:
            known = shard.facts["source"]
            try:
                if stamp(known["path"]) != known:
                    changed.append(f"{known['path']} changed")
            except UserError:
                changed.append(f"{known['path']} is gone")
        return changed
