# SPDX-License-Identifier: Apache-2.0
"""Writes one checkpoint from many processes, each what its devices hold, as T5X does on a pod.

The first process makes the temporary folder; every process writes a database of its own below it; when all
have, the first joins them, adds what there is once, and gives the folder its name. Until then nothing is
there under the name of a checkpoint, whoever dies. All processes see one file system, or write to one bucket,
where nothing is renamed: there the folder has its name at once, and the file that marks it as finished comes
last (`bucket`).
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kcmoe.checkpoint import checksums, encodings, orbax_writing, partial_sums
from kcmoe.checkpoint.bucket import Bucket
from kcmoe.hosts.group import Hosts
from kcmoe.io import durable
from kcmoe.io.remote import Place
from kcmoe.tree import ShapeDtype, shape_dtype

_PART = "ocdbt.process_{}"  # Orbax's name


def save(
    final: Place, step: int, state: Mapping[str, Any], extras: Mapping[str, bytes], hosts: Hosts
) -> Place:
    """Writes checkpoint `final`; every process calls this at the same step.

    Args:
      final: the folder that appears, whole.
      step: the training step.
      state: path -> `jax.Array` over the devices of all processes; where one is alone, NumPy arrays as well.
      extras: small files, those of the first process count.
      hosts: the processes.

    Raises:
      UserError: on every process, if the disk of one refuses; then nothing has changed, but that in a bucket
        a checkpoint of that step is gone.
    """
    started_ns = time.time_ns()
    tree = {path: shape_dtype(state[path]) for path in sorted(state)}
    chunks = {path: _chunks(tree[path], state[path]) for path in tree}
    owners = _owners(tree, state, hosts.count)
    with contextlib.ExitStack() as staging:

        def begin() -> str:
            return staging.enter_context(_staged(final)).name

        folder = final.parent / hosts.first_does(begin)
        item = folder / orbax_writing.ITEM

        def write_own() -> str:
            own = item / _PART.format(hosts.index)
            sums = []
            with durable.user_errors(final):
                if isinstance(own, Path):
                    own.mkdir()
                database = orbax_writing.Database(own)
                for path, leaf in tree.items():
                    pieces = list(_pieces(state[path], owners.get(path), hosts.index))
                    if pieces:
                        database.write(path, leaf, chunks[path], pieces)
                    sums.append(partial_sums.part_of(leaf, pieces))
                database.commit()
                if isinstance(own, Path):
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
                with _small_files(folder) as here:
                    checksums.write(here, step, sums, extras)
                    orbax_writing.write_index(here, tree, chunks)
                    orbax_writing.mark_finished(here, str(final), started_ns)
            staging.close()  # syncs, and renames

        hosts.first_does(finish)
    return final


@contextlib.contextmanager
def _staged(final: Place) -> Iterator[Place]:
    """The folder to write to, which is or becomes `final` when the block ends well, and else vanishes."""
    if isinstance(final, Path):
        with durable.staged(final) as folder:
            (folder / orbax_writing.ITEM).mkdir()
            yield folder
        return
    with Bucket(final.parent).under_way(final.name):
        yield final


@contextlib.contextmanager
def _small_files(folder: Place) -> Iterator[Path]:
    """A folder of this machine whose files are in `folder` when the block has ended well."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="kcmoe-") as here:
        (Path(here) / orbax_writing.ITEM).mkdir()
        yield Path(here)
        Bucket(folder).upload(Path(here))


def _chunks(leaf: ShapeDtype, array: Any) -> tuple[int, ...]:
    """Chunks that lie within what one device holds, so that no two processes write one."""
    held = array.sharding.shard_shape(leaf.shape) if isinstance(array, jax.Array) else leaf.shape
    return encodings.chunk_shape(ShapeDtype(held, leaf.dtype))


def _owners(tree: Mapping[str, ShapeDtype], state: Mapping[str, Any], count: int) -> dict[str, int]:
    """Which process writes what all of them hold whole: about as many bytes each."""
    loads, owners = [0] * count, {}
    for path in sorted(tree, key=lambda path: -tree[path].nbytes):
        if not isinstance(state[path], jax.Array) or state[path].is_fully_replicated:
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
