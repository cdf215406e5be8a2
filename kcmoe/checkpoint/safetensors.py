# SPDX-License-Identifier: Apache-2.0
"""safetensors: one file of raw arrays behind a JSON header.

Each leaf is read and written at its offset, so memory stays at one leaf. Names of tensors are the
paths of T5X's tree. Folders are read too whose tensors are spread over several files with
`model.safetensors.index.json`. Format: https://github.com/huggingface/safetensors (README,
"Format"). Files in buckets must be copied to this machine first.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kcmoe.checkpoint import checksums
from kcmoe.checkpoint.base import Format, Provenance, Reader, Writer
from kcmoe.checkpoint.checksums import raw_bytes
from kcmoe.checkpoint.encodings import checked_shape, named_dtype
from kcmoe.checkpoint.storage import Damaged, Folder
from kcmoe.errors import UserError
from kcmoe.io import json_text
from kcmoe.io.wording import first_line
from kcmoe.tree import ShapeDtype, shape_dtype

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_WORDS = {
    "BOOL": "bool",
    **{
        f"{kind}{bits}": f"{name}{bits}"
        for kind, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
    "BF16": "bfloat16",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
_NAMES = {name: word for word, name in _WORDS.items()}
_MAX_HEADER_BYTES = 100_000_000


class _Place(NamedTuple):
    file: str
    leaf: ShapeDtype
    start: int


def _recognises(folder: Folder) -> bool:
    if folder.remote:
        if folder.exists(FILE) or folder.exists(INDEX):
            raise UserError(
                f"{folder.path} is in safetensors: copy the folder to this machine first"
            )
        return False
    return bool(_files(folder.path))


def _finished(folder: Folder) -> bool:
    return folder.exists(checksums.NAME) and folder.exists(FILE)


class SafetensorsReader(Reader):
    """Reads a folder with one `.safetensors` file, or with several and their index."""

    format = "safetensors"

    def _scan(self) -> tuple[dict[str, ShapeDtype], dict[str, str]]:
        self._places: dict[str, _Place] = {}
        files, problems = indexed_files(self.folder)
        for file in files:
            try:
                places = parse_header(Path(self.path) / file)
            except (Damaged, OSError) as error:
                raise UserError(
                    f"{self.path} is damaged: {file}: {first_line(error)}; take another checkpoint"
                ) from error
            end = os.path.getsize(Path(self.path) / file)
            needed = max((start + leaf.nbytes for leaf, start in places.values()), default=end)
            if needed < end:
                problems[file] = f"{end:,} bytes, {end - needed:,} more than its header tells of"
            for path, (leaf, start) in places.items():
                if start + leaf.nbytes > end:
                    problems[path] = f"{file} is cut off, {end:,} of {needed:,} bytes are there"
                elif path in self._places:
                    problems[path] = f"stands in both {self._places[path].file} and {file}"
                else:
                    self._places[path] = _Place(file, leaf, start)
        for path in problems.keys() & self._places.keys():
            del self._places[path]
        return {path: place.leaf for path, place in self._places.items()}, problems

    def _read(self, path: str) -> np.ndarray:
        file, leaf, start = self._places[path]
        try:
            values = np.fromfile(Path(self.path) / file, leaf.dtype, leaf.size, offset=start)
        except OSError as error:
            raise Damaged(f"cannot be read: {first_line(error)}") from error
        if values.size != leaf.size:
            raise Damaged(f"cut off ({values.size:,} of {leaf.size:,} values are there)")
        return values.reshape(leaf.shape)


def _files(folder: str) -> list[str]:
    names = os.listdir(folder) if os.path.isdir(folder) else []
    if FILE in names:
        return [FILE]
    return sorted(name for name in names if name.endswith(".safetensors") or name == INDEX)


def indexed_files(folder: Folder) -> tuple[list[str], dict[str, str]]:
    """Returns the names of the files that hold the tensors, and tensor -> what is wrong with it.

    Raises `UserError` if the index is damaged, or if there are several files without one.
    """
    files, problems = _files(folder.path), {}
    if not folder.exists(INDEX):
        if len(files) > 1:
            raise UserError(
                f"{folder.path} holds {len(files)} safetensors files but no {INDEX}, which would tell "
                "how they belong together"
            )
        return files, {}
    try:
        weights = json_text.parse(folder.read(INDEX))["weight_map"]
        if not all(
            isinstance(file, str) and os.path.basename(file) == file for file in weights.values()
        ):
            raise ValueError("a file name is not one")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder.path}/{INDEX} is damaged ({error}): take another checkpoint"
        ) from error
    present = sorted({file for file in weights.values() if folder.exists(file)})
    for path, file in weights.items():
        if file not in present:
            problems[path] = f"missing (its file {file} is not there)"
    return present, problems


def parse_header(file: Path) -> dict[str, tuple[ShapeDtype, int]]:
    """Returns name -> (shape and dtype, offset in the file). Raises `Damaged`."""
    if not file.is_file():
        raise Damaged("it is a device or a pipe, not a file")
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, os.path.getsize(file) - 8):
            raise Damaged("its header is cut off or damaged")
        content = opened.read(length)
    try:
        fields = json_text.parse(content)
        fields.pop("__metadata__", None)
        for name, entry in fields.items():
            if lacking := {"shape", "dtype", "data_offsets"} - entry.keys():
                raise ValueError(f"{name} has no {min(lacking)}")
        found, end = {}, 0
        for name, entry in sorted(fields.items(), key=lambda item: item[1]["data_offsets"]):
            leaf = ShapeDtype(
                checked_shape(entry["shape"]), named_dtype(_WORDS.get(entry["dtype"]))
            )
            start, stop = checked_shape(entry["data_offsets"])
            if start != end or stop - start != leaf.nbytes:
                raise ValueError(f"{name} ({leaf}) is said to lie at bytes {start} to {stop}")
            found[name], end = (leaf, 8 + length + start), stop
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"its header is damaged ({error})") from error
    return found


class TensorFile:
    """A `.safetensors` file to be written: its header first, then values in any order.

    `tensors`: name -> shape and dtype of all that will come. Raises OSError if the disk refuses.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, ShapeDtype], metadata: Mapping[str, str]
    ) -> None:
        self._tensors = tensors
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        # Widest values first keeps every array aligned to the size of its values.
        for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
            leaf = tensors[name]
            self._offsets[name] = end
            header[name] = {
                "dtype": _NAMES[leaf.dtype.name],
                "shape": list(leaf.shape),
                "data_offsets": [end, end := end + leaf.nbytes],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._file = path.open("wb")
        weakref.finalize(self, self._file.close)  # a conversion that fails half-way closes nothing
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._start + end)

    def write(self, name: str, array: np.ndarray, first: int = 0) -> None:
        """Writes `array` into the tensor `name`, from its `first` value on (in C order).

        A tensor may come in parts. Raises ValueError for a part that is of another dtype or does
        not lie inside the tensor.
        """
        leaf = self._tensors[name]
        if array.dtype != leaf.dtype or first < 0 or first + array.size > leaf.size:
            raise ValueError(f"{name} is {leaf}: no place for {shape_dtype(array)} at {first}")
        self._file.seek(self._start + self._offsets[name] + first * leaf.dtype.itemsize)
        self._file.write(raw_bytes(array))

    def close(self) -> None:
        """Closes the file, which is then complete if every value was written."""
        self._file.close()


class SafetensorsWriter(Writer):
    """Writes the leaves into `folder/model.safetensors`."""

    def __init__(self, folder: Path, tree: Mapping[str, ShapeDtype], about: Provenance):
        super().__init__(folder, tree, about)
        self._file = TensorFile(folder / FILE, tree, {"format": "flax"})

    def add(self, path: str, array: np.ndarray) -> None:
        """Writes one leaf at its place in the file. Raises OSError if the disk refuses."""
        self._file.write(path, array)

    def finish(self, final: str) -> None:
        """Closes the file."""
        del final
        self._file.close()


FORMAT = Format(
    name=SafetensorsReader.format,
    title="safetensors",
    recognises=_recognises,
    finished=_finished,
    reader=SafetensorsReader,
    writer=SafetensorsWriter,
)
