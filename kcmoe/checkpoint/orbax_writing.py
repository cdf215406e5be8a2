# SPDX-License-Identifier: Apache-2.0
"""Writes T5X's current layout, which `orbax` reads and describes.

Straight through TensorStore, leaf by leaf, so that memory stays small. Differences from what T5X writes: one
process writes one OCDBT database instead of one per process and merged, there is no `dataset` item, and large
arrays have several chunks. Several processes (`together`) write as T5X does. Source of the JSON files: orbax
`tree_metadata`.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe.checkpoint import encodings
from kcmoe.checkpoint.base import Provenance, Writer
from kcmoe.io.remote import Address, Place
from kcmoe.tree import ShapeDtype

ITEM = "state"
COMMIT_FILE = "commit_success.txt"
STEP_METADATA = "_CHECKPOINT_METADATA"
_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
_DICT_KEY = 2
_COMMIT_BYTES = 64 << 20
_OCDBT_CONFIG = {"max_inline_value_bytes": 1024, "compression": {"id": "zstd"}}


class Database:
    """One OCDBT database of zarr arrays, written a few dozen arrays at a time."""

    def __init__(self, folder: Place):
        import tensorstore as ts

        self._ts = ts
        self._context = ts.Context(encodings.WRITING)
        self._transaction = ts.Transaction()
        self._waiting_bytes = 0
        self._kvstore = _kvstore(folder)

    def write(
        self,
        path: str,
        leaf: ShapeDtype,
        chunks: Sequence[int],
        pieces: Iterable[tuple[Any, np.ndarray]],
    ) -> None:
        """Writes pieces of one array, each an index and the values there, made of whole `chunks`.

        Raises ValueError or OSError if the disk refuses.
        """
        spec = {
            "driver": "zarr",
            "kvstore": {**self._kvstore, "path": path.replace("/", ".") + "/"},
            "metadata": {
                "compressor": {"id": "zstd", "level": 1},
                "dtype": "bfloat16" if leaf.dtype.name == "bfloat16" else leaf.dtype.str,
                "shape": list(leaf.shape),
                "chunks": list(chunks),
            },
            "store_data_equal_to_fill_value": True,
        }
        store = self._ts.open(
            spec, create=True, open=False, context=self._context, transaction=self._transaction
        ).result()
        for index, values in pieces:
            store[index].write(values).result()
            # A transaction keeps its values in memory until it is committed, and a commit rewrites the
            # index: a few dozen leaves, or one large one, at a time.
            self._waiting_bytes += values.nbytes
        if self._waiting_bytes >= _COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Writes what waits in memory."""
        self._transaction.commit_async().result()
        self._transaction, self._waiting_bytes = self._ts.Transaction(), 0


def _kvstore(folder: Place) -> dict[str, Any]:
    if isinstance(folder, Address):
        base: Any = f"{folder}/"
    else:
        base = {"driver": "file", "path": f"{folder.resolve()}/"}
    return {"driver": "ocdbt", "base": base, "config": _OCDBT_CONFIG}


def merge(folder: Place, parts: Sequence[Place]) -> None:
    """Makes `folder` one database of those in its subfolders `parts`, which stay and hold the values.

    As orbax `ocdbt_utils.merge_ocdbt_per_process_files`.
    """
    import tensorstore as ts

    context, transaction = ts.Context(encodings.WRITING), ts.Transaction(atomic=True)
    whole = ts.KvStore.open(_kvstore(folder), context=context).result()
    for part in parts:
        one = ts.KvStore.open(_kvstore(part), context=context).result()
        one.experimental_copy_range_to(whole.with_transaction(transaction)).result()
    transaction.commit_async().result()


class OrbaxWriter(Writer):
    """Writes the arrays into one OCDBT database."""

    def __init__(self, folder: Path, tree: Mapping[str, ShapeDtype], about: Provenance):
        super().__init__(folder, tree, about)
        self._started = time.time_ns()
        (folder / ITEM).mkdir()
        self._database = Database(folder / ITEM)
        self._chunks = {path: encodings.chunk_shape(leaf) for path, leaf in tree.items()}

    def add(self, path: str, array: np.ndarray) -> None:
        """Writes one leaf. Raises ValueError or OSError if the disk refuses."""
        self._database.write(path, self.tree[path], self._chunks[path], [((...,), array)])

    def finish(self, final: str) -> None:
        """Writes the index and the commit files; `final` is the path the checkpoint will have."""
        self._database.commit()
        write_index(self.folder, self.tree, self._chunks)
        mark_finished(self.folder, final, self._started)


def write_index(
    folder: Path, tree: Mapping[str, ShapeDtype], chunks: Mapping[str, Sequence[int]]
) -> None:
    """Writes what Orbax wants to know of the arrays of a checkpoint in `folder`."""
    item = folder / ITEM
    (item / "_METADATA").write_text(json.dumps(_metadata(tree)))
    (item / "_sharding").write_text(json.dumps(_shardings(tree)))
    described = item / "array_metadatas" / "process_0"
    described.parent.mkdir()
    described.write_text(json.dumps(_array_metadatas(tree, chunks)))


def mark_finished(folder: Path, final: str, started_ns: int) -> None:
    """Writes the files that say that a save has ended well; `final` is the path that `folder` will have."""
    step_metadata = {
        "item_handlers": {ITEM: _HANDLER},
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": started_ns,
        "commit_timestamp_nsecs": time.time_ns(),
        "custom_metadata": {},
    }
    (folder / STEP_METADATA).write_text(json.dumps(step_metadata))
    for each, name in ((folder / ITEM, f"{final}/{ITEM}"), (folder, final)):
        (each / COMMIT_FILE).write_text(f"Checkpoint commit was successful to {Path(name).name}")


def _metadata(tree: Mapping[str, ShapeDtype]) -> dict[str, Any]:
    """Returns the content of `_METADATA` for arrays stored in OCDBT as zarr 2."""
    entries = {}
    for path, leaf in tree.items():
        names = tuple(path.split("/"))
        entries[str(names)] = {
            "key_metadata": [{"key": name, "key_type": _DICT_KEY} for name in names],
            "value_metadata": {
                "value_type": "jax.Array",
                "skip_deserialize": False,
                # Orbax notes here the part that each process wrote, which is the whole array.
                "write_shape": list(leaf.shape),
            },
        }
    return {
        "tree_metadata": entries,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


def _shardings(tree: Mapping[str, ShapeDtype]) -> dict[str, str]:
    """Returns the content of `_sharding`: where Orbax puts arrays unless it is told (T5X tells it)."""
    first_device = {
        "sharding_type": "NamedSharding",
        "shape": [1],
        "axis_names": ["data"],
        "axis_types": ["AxisType.Auto"],
        "partition_spec": [],
        "device_mesh": {"mesh": [{"id": 0}]},
    }
    text = json.dumps(first_device)
    return {base64.b64encode(path.replace("/", ".").encode()).decode(): text for path in tree}


def _array_metadatas(
    tree: Mapping[str, ShapeDtype], chunks: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Returns the content of `array_metadatas/process_0`: shape and chunks of every array."""
    return {
        "array_metadatas": [
            {
                "array_metadata": {
                    "param_name": path.replace("/", "."),
                    "write_shape": list(leaf.shape),
                    "chunk_shape": list(chunks[path]),
                    "ext_metadata": None,
                }
            }
            for path, leaf in tree.items()
        ]
    }
