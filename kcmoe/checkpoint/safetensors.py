# SPDX-License-Identifier: Apache-2.0
"""safetensors: one file of raw arrays behind a JSON header.

Read and written leaf by leaf at its offset, so memory stays at one leaf. Names of tensors are the
paths of T5X's tree. Also reads folders whose tensors are spread over several files with
`model.safetensors.index.json`. Format: https://github.com/huggingface/safetensors (README,
"Format"). Files in buckets must be copied here first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kcmoe.checkpoint.leaves import ShapeDtype, checked_shape, named_dtype, raw_bytes
from kcmoe.checkpoint.reader import Reader
from kcmoe.checkpoint.storage import Damaged, Folder
from kcmoe.errors import UserError

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


class SafetensorsReader(Reader):
    """Reads a folder with one `.safetensors` file, or with several and their index."""

    format = "safetensors"

    @staticmethod
    def recognises(folder: Folder) -> bool:
        """Tells whether the folder is of this format."""
        if folder.remote:
            if folder.exists(FILE) or folder.exists(INDEX):
                raise UserError(
                    f"{folder.path} is in safetensors: copy the folder to this machine first"
                )
            return False
        return bool(_files(folder.path))

    def _scan(self) -> tuple[dict[str, ShapeDtype], dict[str, str]]:
        self._places: dict[str, _Place] = {}
        problems: dict[str, str] = {}
        files = _files(self.path)
        if len(files) > 1 and not self.folder.exists(INDEX):
            raise UserError(
                f"{self.path} holds {len(files)} safetensors files but no {INDEX}: which belong "
                f"together?"
            )
        if self.folder.exists(INDEX):
            files = self._indexed_files(problems)
        for file in files:
            try:
                places = parse_header(Path(self.path) / file)
            except (Damaged, OSError) as error:
                raise UserError(
                    f"{self.path} is damaged: {file}: {error}; take another checkpoint"
                ) from error
            end = os.path.getsize(Path(self.path) / file)
            needed = max((start + leaf.nbytes for leaf, start in places.values()), default=end)
            if needed < end:
                problems[file] = f"{end:,} bytes, {end - needed:,} more than its header tells of"
            for path, (leaf, start) in places.items():
                if start + leaf.nbytes > end:
                    problems[path] = (
                        f"cut off ({file} has {end:,} bytes, {start + leaf.nbytes:,} are needed)"
                    )
                elif path in self._places:
                    problems[path] = f"stands in both {self._places[path].file} and {file}"
                else:
                    self._places[path] = _Place(file, leaf, start)
        for path in problems.keys() & self._places.keys():
            del self._places[path]
        return {path: place.leaf for path, place in self._places.items()}, problems

    def _indexed_files(self, problems: dict[str, str]) -> list[str]:
        try:
            weights = json.loads(self.folder.read(INDEX))["weight_map"]
            if not all(
                isinstance(file, str) and os.path.basename(file) == file
                for file in weights.values()
            ):
                raise ValueError("a file name is not one")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path}/{INDEX} is damaged ({error}): take another checkpoint"
            ) from error
        present = sorted({file for file in weights.values() if self.folder.exists(file)})
        for path, file in weights.items():
            if file not in present:
                problems[path] = f"missing (its file {file} is not there)"
        return present

    def _read(self, path: str) -> np.ndarray:
        file, leaf, start = self._places[path]
        try:
            values = np.fromfile(Path(self.path) / file, leaf.dtype, leaf.size, offset=start)
        except OSError as error:
            raise Damaged(f"cannot be read: {error}") from error
        if values.size != leaf.size:
            raise Damaged(f"cut off ({values.size:,} of {leaf.size:,} values are there)")
        return values.reshape(leaf.shape)


def _files(folder: str) -> list[str]:
    names = os.listdir(folder) if os.path.isdir(folder) else []
    if FILE in names:
        return [FILE]
    return sorted(name for name in names if name.endswith(".safetensors") or name == INDEX)


def parse_header(file: Path) -> dict[str, tuple[ShapeDtype, int]]:
    """Returns name -> (shape and dtype, offset in the file). Raises `Damaged`."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, os.path.getsize(file) - 8):
            raise Damaged("its header is cut off or damaged")
        content = opened.read(length)
    try:
        fields = json.loads(content)
        fields.pop("__metadata__", None)
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


class SafetensorsWriter:
    """Writes the leaves into `folder/model.safetensors`, in any order."""

    def __init__(self, folder: Path, tree: Mapping[str, ShapeDtype]):
        self._tree = tree
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": {"format": "flax"}}
        end = 0
        # Widest values first keeps every array aligned to the size of its values.
        for path in sorted(tree, key=lambda path: (-tree[path].dtype.itemsize, path)):
            leaf = tree[path]
            self._offsets[path] = end
            header[path] = {
                "dtype": _NAMES[leaf.dtype.name],
                "shape": list(leaf.shape),
                "data_offsets": [end, end := end + leaf.nbytes],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._file = (folder / FILE).open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._start + end)

    def add(self, path: str, array: np.ndarray) -> None:
        """Writes one leaf. Raises OSError if the disk refuses."""
        self._file.seek(self._start + self._offsets[path])
        self._file.write(raw_bytes(array))

    def finish(self, final: str) -> None:
        """Closes the file."""
        del final
        self._file.close()
