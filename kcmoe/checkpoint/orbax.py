# SPDX-License-Identifier: Apache-2.0
"""T5X's current layout: Orbax's PyTree item `state`, zarr arrays inside one OCDBT database.

What T5X's `OrbaxCheckpointManagerInterface` needs of it (t5x@cc342d4:t5x/checkpoints.py) is the item folder
`state`, its `_METADATA`, arrays named by their path with dots, and the commit files. `orbax_writing` writes
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kcmoe.checkpoint import checksums, encodings
from kcmoe.checkpoint.base import Format, Reader
from kcmoe.checkpoint.orbax_writing import COMMIT_FILE, ITEM, STEP_METADATA, OrbaxWriter
from kcmoe.checkpoint.storage import Damaged, Folder, reason
from kcmoe.errors import UserError
from kcmoe.io import json_text
from kcmoe.io.wording import first_line
from kcmoe.tree import ShapeDtype, flattened

_PLACEHOLDER = "PLACEHOLDER://"
_EMPTY_TYPES = {"None", "Dict", "List", "NamedTuple", "Tuple"}


def _recognises(folder: Folder) -> bool:
    known = [f"{ITEM}/{name}" for name in ("_METADATA", "manifest.ocdbt", "checkpoint")]
    return any(folder.exists(name) for name in (*known, STEP_METADATA))


def _is_marked(folder: Folder) -> bool:
    # Orbax of today marks a finished save by a file, as does any Orbax in a bucket; years ago, on a
    # disk, only the final name did, and there was no _CHECKPOINT_METADATA either.
    return folder.remote or any(map(folder.exists, (checksums.NAME, STEP_METADATA)))


def _finished(folder: Folder) -> bool:
    if _is_marked(folder):
        return folder.exists(COMMIT_FILE)
    return any(folder.exists(f"{ITEM}/{name}") for name in ("_METADATA", "checkpoint"))


class OrbaxReader(Reader):
    """Reads `checkpoint_N/state`: OCDBT or plain zarr, with `_METADATA` or a msgpack index."""

    format = "t5x_orbax"

    def __init__(self, folder: Folder):
        super().__init__(folder)
        if _is_marked(folder) and not folder.exists(COMMIT_FILE):
            raise UserError(
                f"{self.path} is a half-finished save (it has no {COMMIT_FILE}): take another "
                "checkpoint, or, if you know that the save ended well, create that file"
            )
        self._ocdbt = folder.exists(f"{ITEM}/manifest.ocdbt")
        self._names: frozenset[str] = frozenset()
        self._inline: dict[str, np.ndarray] = {}

    def _scan(self) -> tuple[dict[str, ShapeDtype], dict[str, str]]:
        try:
            declared = self._declared()
            self._names = self._list()
        except Damaged as damage:
            raise UserError(
                f"{self.path} is damaged: {damage}; take another checkpoint"
            ) from damage
        tree, problems = {}, {}
        for path, shape in declared.items():
            try:
                tree[path] = self._header(path, shape)
            except Damaged as damage:
                problems[path] = str(damage)
        for path, array in self._inline.items():
            tree[path] = ShapeDtype(array.shape, array.dtype)
        stored = {name.split("/")[0] for name in self._names if name.endswith("/.zarray")}
        known = {path.replace("/", ".") for path in declared}
        for name in sorted(stored - known):
            problems[name] = "is stored, but the index does not know it"
        return tree, problems

    def _declared(self) -> dict[str, tuple[int, ...] | None]:
        """Returns path -> shape (None if the index does not say) of the stored arrays."""
        if self.folder.exists(f"{ITEM}/_METADATA"):
            return _parse_metadata(self.folder.read(f"{ITEM}/_METADATA"))
        found = _parse_placeholders(self.folder.read(f"{ITEM}/checkpoint"))
        self._inline = {path: value for path, value in found.items() if value is not None}
        return {path: None for path, value in found.items() if value is None}

    def _list(self) -> frozenset[str]:
        if not self._ocdbt:
            prefix = f"{ITEM}/"
            return frozenset(n[len(prefix) :] for n in self.folder.names() if n.startswith(prefix))
        import tensorstore as ts

        try:
            self._store = ts.KvStore.open(self._kvstore(""), context=self.folder.context).result()
            return frozenset(key.decode() for key in self._store.list().result())
        except (ValueError, RuntimeError) as error:
            raise Damaged(f"{ITEM}/manifest.ocdbt: {reason(error)}") from error

    def _kvstore(self, below: str) -> dict[str, Any]:
        base = self.folder.kvstore(f"{ITEM}/" if self._ocdbt else f"{ITEM}/{below}")
        return {"driver": "ocdbt", "base": base, "path": below} if self._ocdbt else base

    def _header(self, path: str, shape: tuple[int, ...] | None) -> ShapeDtype:
        name = path.replace("/", ".")
        if f"{name}/.zarray" not in self._names:
            raise Damaged("missing (the index lists it, its array is not there)")
        header = encodings.parse_header(self._content(f"{name}/.zarray"), name)
        if shape is not None and not _tiles(shape, header.leaf.shape):
            raise Damaged(f"{header.leaf} is stored, the index says {list(shape)}")
        encodings.check_chunks(header, name, self._names, self._size_of(header))
        return header.leaf

    def _size_of(self, header: encodings.Header) -> Callable[[str], int] | None:
        """Returns what tells the bytes of a stored chunk, None where it need not be asked or cannot."""
        sizes = self.folder.sizes()
        if sizes is None:
            return None
        if not self._ocdbt:
            return lambda key: sizes[f"{ITEM}/{key}"]
        # A database tells no sizes, so chunks are read for it; floats never shrink to an eighth, so that
        # concerns only arrays of zeros and headers that lie.
        if max(header.leaf.nbytes, header.chunk_bytes) <= 8 * sum(sizes.values()):
            return None
        return lambda key: len(self._content(key))

    def _content(self, key: str) -> bytes:
        if not self._ocdbt:
            return self.folder.read(f"{ITEM}/{key}")
        try:
            content: bytes = self._store.read(key).result().value
        except (ValueError, RuntimeError) as error:
            raise Damaged(reason(error)) from error
        if not content:  # the database lists it, and the file that held it is gone
            raise Damaged("its file is missing or empty")
        return content

    def _read(self, path: str) -> np.ndarray:
        if path in self._inline:
            return self._inline[path]
        return encodings.read_array(
            self._kvstore(path.replace("/", ".") + "/"), self.folder.context
        )


def _tiles(part: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Tells whether `part`, what one process of a pod wrote, fits a whole number of times."""
    if len(part) != len(whole):
        return False
    return all(p == w or (p and w % p == 0) for p, w in zip(part, whole, strict=True))


def _parse_placeholders(content: bytes) -> dict[str, np.ndarray | None]:
    """Reads the index of Orbax before `_METADATA`: path -> values, None if stored apart."""
    found: dict[str, np.ndarray | None] = {}
    for path, value in flattened(encodings.unpack(content, "state/checkpoint")).items():
        if isinstance(value, str) and value.startswith(_PLACEHOLDER):
            if value[len(_PLACEHOLDER) :] != path.replace("/", "."):
                raise Damaged(f"the index state/checkpoint names {value!r} for {path}")
            found[path] = None
        elif value is not None:
            found[path] = encodings.inline_array(value)
    return found


def _parse_metadata(content: bytes) -> dict[str, tuple[int, ...] | None]:
    """Reads `_METADATA`: path -> shape (None where an older Orbax did not note it)."""
    found: dict[str, tuple[int, ...] | None] = {}
    try:
        fields = json_text.parse(content)
        if fields.get("use_zarr3"):
            raise ValueError("zarr 3, which T5X does not write")
        for entry in fields["tree_metadata"].values():
            names = [part["key"] for part in entry["key_metadata"]]
            if not names or not all(isinstance(name, str) and name for name in names):
                raise ValueError(f"a path {names!r}")
            value = entry["value_metadata"]
            if value.get("skip_deserialize") or value.get("value_type") in _EMPTY_TYPES:
                continue
            shape = value.get("write_shape")
            found["/".join(names)] = None if shape is None else encodings.checked_shape(shape)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"the index state/_METADATA is damaged ({first_line(error)})") from error
    return found


FORMAT = Format(
    name=OrbaxReader.format,
    title="T5X's Orbax layout (state/_METADATA)",
    recognises=_recognises,
    finished=_finished,
    reader=OrbaxReader,
    writer=OrbaxWriter,
    read_by_t5x=True,
)
