# SPDX-License-Identifier: Apache-2.0
"""Writes one checkpoint from many processes, each what its devices hold, as T5X does on a pod.

The first process makes the temporary folder; every process writes a database of its own below it; when all
have, the first joins them, adds what there is once, and gives the folder its name. Until then nothing is
there under the name of a checkpoint, whoever dies. All processes see one file system.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe.checkpoint import checksums, encodings, orbax_writing, partial_sums
from kcmoe.hosts.group import Hosts
from kcmoe.io import durable
from kcmoe.tree import ShapeDtype, shape_dtype

_PART = "ocdbt.process_{}"  # Orbax's name


def save(
    final: Path, step: int, state: Mapping[str, Any], extras: Mapping[str, bytes], hosts: Hosts
) -> Path:
    """Writes checkpoint `final`; every process calls this at the same step.

    Args:
      final: the folder that appears, whole.
      step: the training step.
      state: path -> `jax.Array` over the devices of all processes.
      extras: small files, those of the first process count.
      hosts: the processes.

    Raises:
      UserError: on every process, if the disk of one refuses; then nothing has changed.
    """
    started_ns = time.time_ns()
    tree = {path: shape_dtype(state[path]) for path in sorted(state)}
    chunks = {path: _chunks(tree[path], state[path]) for path in tree}
    owners = _owners(tree, state, hosts.count)
    with contextlib.ExitStack() as staging:

        def begin() -> str:
            folder = staging.enter_context(durable.staged(final))
            (folder / orbax_writing.ITEM).mkdir()
            return folder.name

        folder = final.parent / hosts.first_does(begin)
        item = folder / orbax_writing.ITEM

        def write_own() -> str:
            own = item / _PART.format(hosts.index)
            sums = []
            with durable.user_errors(final):
                own.mkdir()
                database = orbax_writing.Database(own)
                for path, leaf in tree.items():
                    pieces = list(_pieces(state[path], owners.get(path), hosts.index))
                    if pieces:
                        database.write(path, leaf, chunks[path], pieces)
                    sums.append(partial_sums.part_of(leaf, pieces))
                database.commit()
                durable.sync_tree(own)
            return " ".join(f"{part:08x}" for part in sums)

        parts = [[int(word, 16) for word in text.split()] for text in hosts.each(write_own)]

        def finish() -> None:
            sums = {
                path: (leaf, partial_sums.joined(leaf, [one[number] for one in parts]))
                for number, (path, leaf) in enumerate(tree.items())
            }
            with durable.user_errors(final):
                orbax_writing.merge(
                    item, [item / _PART.format(index) for index in range(hosts.count)]
                )
                checksums.write(folder, step, sums, extras)
                orbax_writing.write_index(folder, tree, chunks)
                orbax_writing.mark_finished(folder, str(final), started_ns)
            staging.close()  # syncs, and renames

        hosts.first_does(finish)
    return final


def _chunks(leaf: ShapeDtype, array: Any) -> tuple[int, ...]:
    """Chunks that lie within what one device holds, so that no two processes write one."""
    return encodings.chunk_shape(ShapeDtype(array.sharding.shard_shape(leaf.shape), leaf.dtype))


def _owners(tree: Mapping[str, ShapeDtype], state: Mapping[str, Any], count: int) -> dict[str, int]:
    """Which process writes what all of them hold whole: about as many bytes each."""
    loads, owners = [0] * count, {}
    for path in sorted(tree, key=lambda path: -tree[path].nbytes):
        if state[path].is_fully_replicated:
            owners[path] = loads.index(min(loads))
            loads[owners[path]] += tree[path].nbytes
    return owners


def _pieces(
    array: Any, owner: int | None, index: int
) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """What process `index` writes of an array: blocks of it, and their values."""
    if owner is not None:
        if owner == index:
            yield tuple(slice(0, size) for size in array.shape), np.asarray(array)
        return
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            where = [
                part.indices(size) for part, size in zip(shard.index, array.shape, strict=True)
            ]
            yield tuple(slice(first, last) for first, last, _ in where), np.asarray(shard.data)
