# SPDX-License-Identifier: Apache-2.0
"""T5X's old format: a msgpack index named `checkpoint`, and one zarr folder per large array.

This is the format of the published 1 M-step checkpoint. The index is the nested state; a leaf is
either the array itself or a TensorStore spec whose relative path names the zarr folder
(t5x@cc342d4:t5x/checkpoints.py, `Checkpointer`). Checkpoints written in a bucket carry a dummy
bucket name, which is ignored: arrays are always looked for beside the index. Difference from T5X: a
chunk that is not there is an error, where T5X reads zeros.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe import tree as trees
from kcmoe.checkpoint import encodings
from kcmoe.checkpoint.base import Format, Provenance, Reader, Writer
from kcmoe.checkpoint.encodings import checked_shape
from kcmoe.checkpoint.storage import Damaged, Folder
from kcmoe.errors import UserError
from kcmoe.tree import ShapeDtype, shape_dtype

_INDEX = "checkpoint"
_VERSION = 3


def _has_index(folder: Folder) -> bool:
    # The index is written last: where it is, the save has ended.
    return folder.exists(_INDEX)


class LegacyReader(Reader):
    """Reads `checkpoint_N/checkpoint` and the zarr folders beside it."""

    format = "t5x_legacy"

    def __init__(self, folder: Folder):
        super().__init__(folder)
        self._inline: dict[str, np.ndarray] = {}
        self._headers: dict[str, bytes] = {}

    def _scan(self) -> tuple[dict[str, ShapeDtype], dict[str, str]]:
        content = self.folder.read(_INDEX)
        if content.startswith(b"model_checkpoint_path"):
            raise UserError(
                f"{self.path} is a TensorFlow checkpoint: let T5X restore and save it, then take "
                "that one"
            )
        try:
            index = encodings.unpack(content, _INDEX)
            state = index.get("optimizer", index)
            if not isinstance(state, dict) or "target" not in state:
                raise Damaged(f"the index {_INDEX} holds no target: it is not T5X's")
            entries = trees.flattened(state, is_leaf=_is_spec)
        except (Damaged, ValueError) as error:
            raise UserError(f"{self.path} is damaged: {error}; take another checkpoint") from error
        tree, problems = {}, {}
        self._headers = self.folder.read_many(
            f"{path.replace('/', '.')}/.zarray"
            for path, entry in entries.items()
            if _is_spec(entry)
        )
        for path, entry in entries.items():
            if entry is None:
                continue
            try:
                if _is_spec(entry):
                    tree[path] = self._header(path, entry)
                else:
                    self._inline[path] = encodings.inline_array(entry)
                    tree[path] = shape_dtype(self._inline[path])
            except Damaged as damage:
                problems[path] = str(damage)
        known = {path.replace("/", ".") for path in entries}
        stored = {name.split("/")[0] for name in self.folder.names() if name.endswith("/.zarray")}
        for name in sorted(stored - known):
            problems[name] = "is stored, but the index does not know it"
        return tree, problems

    def _header(self, path: str, spec: Mapping[str, Any]) -> ShapeDtype:
        name = path.replace("/", ".")
        shape, chunks, dtype = _check_spec(name, spec)
        if f"{name}/.zarray" not in self._headers:
            raise Damaged("missing (the index lists it, its array is not there)")
        header = encodings.parse_header(self._headers[f"{name}/.zarray"], name)
        if header.leaf.shape != shape or (dtype and header.leaf.dtype.name != dtype):
            raise Damaged(f"{header.leaf} is stored, the index says {dtype}{list(shape)}")
        if chunks is not None and header.chunks != chunks:
            raise Damaged(f"stored in chunks {list(header.chunks)}, the index says {list(chunks)}")
        sizes = self.folder.sizes()
        size_of = None if sizes is None else sizes.__getitem__
        encodings.check_chunks(header, name, self.folder.names(), size_of)
        return header.leaf

    def _read(self, path: str) -> np.ndarray:
        if path in self._inline:
            return self._inline[path]
        below = path.replace("/", ".") + "/"
        return encodings.read_array(self.folder.kvstore(below), self.folder.context)


def _is_spec(entry: object) -> bool:
    return isinstance(entry, Mapping) and {"driver", "kvstore", "metadata"} <= entry.keys()


def _check_spec(
    name: str, spec: Mapping[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...] | None, str | None]:
    """Returns the shape, chunks and dtype name of a spec. Raises `Damaged` if it is not T5X's."""
    try:
        stored = spec["kvstore"].get("path", spec.get("path", ""))
        if spec["driver"] != "zarr" or re.sub(r"/$", "", stored) != name:
            raise ValueError(f"driver {spec['driver']!r}, path {stored!r}")
        metadata = spec["metadata"]
        chunks = checked_shape(metadata["chunks"]) if "chunks" in metadata else None
        return checked_shape(metadata["shape"]), chunks, spec.get("dtype")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"its entry in the index {_INDEX} is damaged ({error})") from error


class LegacyWriter(Writer):
    """Writes a zarr folder per large array, the small ones into the index."""

    def __init__(self, folder: Path, tree: Mapping[str, ShapeDtype], about: Provenance):
        import tensorstore as ts

        super().__init__(folder, tree, about)
        self._entries: dict[str, Any] = {}
        self._ts = ts
        self._context = ts.Context(encodings.WRITING)

    def add(self, path: str, array: np.ndarray) -> None:
        """Writes one leaf. Raises ValueError or OSError if the disk refuses."""
        leaf = self.tree[path]
        if _stands_in_index(path, leaf):
            self._entries[path] = array
            return
        name = path.replace("/", ".")
        metadata = {
            "chunks": list(encodings.chunk_shape(leaf)),
            "compressor": {"id": "gzip", "level": 1},
            "shape": list(leaf.shape),
        }
        spec = {"driver": "zarr", "dtype": leaf.dtype.name, "metadata": metadata}
        # Every chunk is written, also one of zeros: a missing chunk then always means damage.
        store = self._ts.open(
            {
                **spec,
                "kvstore": {"driver": "file", "path": f"{self.folder.resolve()}/{name}/"},
                "store_data_equal_to_fill_value": True,
            },
            create=True,
            open=False,
            context=self._context,
        ).result()
        store.write(array).result()
        self._entries[path] = {**spec, "kvstore": {"driver": "file", "path": f"{name}/"}}

    def finish(self, final: str) -> None:
        """Writes the index, without which no reader takes the folder for a checkpoint."""
        del final
        index = {"version": _VERSION, "optimizer": trees.nested(self._entries)}
        (self.folder / _INDEX).write_bytes(encodings.pack(index))


def _stands_in_index(path: str, leaf: ShapeDtype) -> bool:
    # As T5X does: what it does not partition, that is scalars, placeholders of one value, and the
    # row and column statistics of matrices.
    if leaf.size <= 1:
        return True
    return trees.is_optimizer(path) and len(leaf.shape) == 1 and path[-6:] in ("/v_row", "/v_col")


FORMAT = Format(
    name=LegacyReader.format,
    title="T5X's old format (a file named checkpoint)",
    recognises=_has_index,
    finished=_has_index,
    reader=LegacyReader,
    writer=LegacyWriter,
    read_by_t5x=True,
)
