# SPDX-License-Identifier: Apache-2.0
"""What kind of file a name or a folder stands for, and its bytes, unpacked by its ending.

Endings count whatever their case. A folder is the files in it; one that `datasets.save_to_disk` wrote is its
Arrow files.
"""

from __future__ import annotations

import bz2
import functools
import io
import json
import logging
import lzma
import os
import re
import zipfile
import zlib
from typing import Any

from kcmoe.errors import UserError
from kcmoe.io import remote
from kcmoe.io.wording import first_line, listed

_log = logging.getLogger(__name__)

FORMATS = (".parquet", ".arrow", ".tsv", ".csv", ".jsonl", ".txt")
_ALIASES = {
    ".json": ".jsonl",
    ".ndjson": ".jsonl",
    ".pq": ".parquet",
    ".feather": ".arrow",
    ".ipc": ".arrow",
}
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
# What a damaged compressed file raises; most are no OSErrors. zipfile raises RuntimeError for passwords.
UNREADABLE = (
    OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, NotImplementedError,
)  # fmt: skip
_BLOCK_BYTES = 1 << 16
# Beside the data in folders that libraries write, and no data themselves.
_DESCRIBES = re.compile(r"(readme|licen[sc]e|notice|citation|sha256sums)", re.IGNORECASE)
_ABOUT = {"dataset_info.json", "state.json", "dataset_infos.json", "package.json"}


def packing_of(path: str) -> str:
    """How a file is compressed, by its ending: "gzip", "bz2", "xz", "zstd", "zip", or "" for not at all."""
    return _PACKED.get(os.path.splitext(path)[1].lower(), "")


def ending_of(path: str) -> str:
    """The ending that says the format, compression set aside; spelt as in `FORMATS` where it is known."""
    name = os.path.splitext(path)[0] if packing_of(path) else path
    ending = os.path.splitext(name)[1].lower()
    return _ALIASES.get(ending, ending)


def format_of(path: str) -> str:
    """The format by ending, compression set aside: one of `FORMATS`.

    Raises:
      UserError: for any other ending.
    """
    ending = ending_of(path)
    if packing_of(path) == "zip" and ending not in FORMATS:
        with _opened(path) as raw, _archive(path, raw) as archive:
            ending = os.path.splitext(_member(path, archive))[1].lower()
            ending = _ALIASES.get(ending, ending)
    if ending not in FORMATS:
        raise UserError(f"{path}: {_unknown(path, ending)}; known are {', '.join(FORMATS)}")
    if ending in (".parquet", ".arrow") and packing_of(path):
        raise UserError(f"{path}: {ending} files are compressed inside; unpack it first")
    return ending


def _unknown(path: str, ending: str) -> str:
    plain, packed = os.path.splitext(os.path.basename(path))
    if not packing_of(path):
        return "a file of this kind is not read"
    told = f"{ending} does not say" if ending else "nothing in its name says"
    return f"{told} what is compressed; call it {plain}.csv{packed} if it is CSV"


def is_folder(path: str) -> bool:
    """Whether a path that exists is a folder."""
    if not remote.is_remote(path):
        return os.path.isdir(path)
    if path.lower().startswith(("http://", "https://")):
        return path.endswith("/")  # to ask would be to fetch it
    try:
        with remote.os_errors():
            filesystem, name = remote.fsspec().core.url_to_fs(path)
            return bool(filesystem.isdir(name))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None


def in_folder(folder: str) -> list[str]:
    """The files with data in a folder, sorted; hidden ones and those that begin with _ are left out.

    Raises:
      UserError: if there is none, or the folder holds several splits.
    """
    try:
        with remote.os_errors():
            names = _names(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be read: {first_line(error)}") from None
    if "dataset_dict.json" in names:
        raise UserError(f"{folder} holds several splits; name one of them, e.g. {folder}/train")
    if "manifest.json" in names:
        raise UserError(f"{folder} holds several splits; name one, e.g. {folder}/train-*.parquet")
    saved = "state.json" in names and any(name.endswith(".arrow") for name in names)
    if saved:
        names = _saved(folder, names)
    files = [os.path.join(folder, name) for name in names if _is_data(name)]
    others = [] if saved else [name for name in _beside(folder, names) if not _is_data(name)]
    if not files:
        holds = f"; it holds {listed(others, 3)}" if others else ""
        raise UserError(f"{folder} is a folder without files of {', '.join(FORMATS)}{holds}")
    if others:
        _say_passed_over(folder, listed(others, 3))
    return files


@functools.cache
def _say_passed_over(folder: str, others: str) -> None:
    _log.warning("%s: only the files with data right in it are read, not %s", folder, others)


def _beside(folder: str, names: list[str]) -> list[str]:
    """All that a folder shows, subfolders as well where that costs no request, but not what describes it."""
    if not remote.is_remote(folder):
        names = sorted(name for name in os.listdir(folder) if not name.startswith((".", "_")))
    return [name for name in names if name not in _ABOUT and not _DESCRIBES.match(name)]


def _names(folder: str) -> list[str]:
    if remote.is_remote(folder):
        filesystem, name = remote.fsspec().core.url_to_fs(folder)
        found = [each.rstrip("/").rpartition("/")[2] for each in filesystem.ls(name, detail=False)]
    else:
        found = [each.name for each in os.scandir(folder) if each.is_file()]
    return sorted(name for name in found if not name.startswith((".", "_")))


def _saved(folder: str, names: list[str]) -> list[str]:
    """The files of a set that `datasets.save_to_disk` wrote: caches lie beside them."""
    try:
        state = json.loads(remote.read_bytes(os.path.join(folder, "state.json")))
        return [each["filename"] for each in state["_data_files"] if each["filename"] in names]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return [name for name in names if name.startswith("data-")]


def _is_data(name: str) -> bool:
    plain = os.path.splitext(name)[0] if packing_of(name) else name
    ending = os.path.splitext(plain)[1].lower()
    known = _ALIASES.get(ending, ending) in FORMATS or packing_of(name) == "zip"
    return known and name not in _ABOUT


def _opened(path: str, compression: str | None = None) -> Any:
    try:
        if not remote.is_remote(path):
            remote.refuse_devices(path)
            return remote.fsspec().open(path, "rb", compression=compression).open()
        raw = remote.open_binary(path)
        return (
            remote.fsspec().compression.compr[compression](raw, mode="rb") if compression else raw
        )
    except (*UNREADABLE, ValueError, ImportError) as error:
        raise UserError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or first_line(error)}"
        ) from None


def _archive(path: str, raw: Any) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(raw)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None


def _member(path: str, archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if not name.endswith("/")]
    names = [
        n
        for n in names
        if not n.startswith("__MACOSX/") and not os.path.basename(n).startswith(".")
    ]
    if len(names) != 1:
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise UserError(f"{path} holds {len(names)} files ({listed or 'none'}); unpack it first")
    return names[0]


def open_unpacked(path: str) -> Any:
    """Opens a file for reading bytes, decompressing by its ending.

    Raises:
      UserError: if it cannot be opened. Reading may raise `UNREADABLE` later, where it is damaged.
    """
    packing = packing_of(path)
    if packing == "zstd":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(_opened(path), "r"), "zstd")
    if packing == "zip":
        archive = _archive(path, _opened(path))
        name = _member(path, archive)
        try:
            return archive.open(name)
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    if packing in ("bz2", "xz"):
        return io.BufferedReader(_Streams(_opened(path), packing), _BLOCK_BYTES)
    return _opened(path, packing or None)


class _Streams(io.RawIOBase):
    """Streams of bzip2 or xz one behind another, as parallel compressors and `cat` write them.

    Python's own readers take a later stream that is damaged for something that does not belong to the file,
    and end before it without a word.
    """

    def __init__(self, raw: Any, packing: str):
        self._raw, self._new = (
            raw,
            bz2.BZ2Decompressor if packing == "bz2" else lzma.LZMADecompressor,
        )
        self._decoder: Any = self._new()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while True:
            data = b""
            if not self._decoder.eof:
                packed = self._raw.read(_BLOCK_BYTES) if self._decoder.needs_input else b""
                if self._decoder.needs_input and not packed:
                    raise EOFError("it ends in the middle of compressed data")
                data = self._decoder.decompress(packed, len(buffer))
            else:  # zeros may follow a stream, to fill a block
                packed = self._decoder.unused_data or self._raw.read(_BLOCK_BYTES)
                while packed and not packed.strip(b"\0"):
                    packed = self._raw.read(_BLOCK_BYTES)
                if not packed:
                    return 0
                self._decoder = self._new()
                data = self._decoder.decompress(packed.lstrip(b"\0"), len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
