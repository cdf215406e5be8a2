# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint of any format, leaf by leaf, atomically, with checksums.

`save` is what the train loop calls; `convert` reads one format and writes another. Both end in
`write_checkpoint`, which takes the leaves from an iterator, so that memory is that of a few leaves,
whatever the size of the model. Nothing appears under the final name before every byte is on the
disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe import tree as trees
from kcmoe.checkpoint import checksums, formats, run_config
from kcmoe.checkpoint.base import Provenance, Reader, describe_problems
from kcmoe.checkpoint.checksums import checksum
from kcmoe.checkpoint.encodings import named_dtype
from kcmoe.checkpoint.reading import (
    checked_leaves,
    compare,
    open_checkpoint,
    parameter_sources,
)
from kcmoe.checkpoint.run_config import sizes_of
from kcmoe.checkpoint.storage import Damaged, Folder
from kcmoe.errors import UserError
from kcmoe.hosts.group import ALONE, Hosts
from kcmoe.io import durable, outputs
from kcmoe.io.remote import Place, is_remote, place
from kcmoe.tree import STEP, ShapeDtype, is_optimizer, is_parameter, shape_dtype

Progress = Callable[[int], object]


def save(
    model_dir: str | os.PathLike[str],
    step: int,
    flat_state: Mapping[str, Any],
    extras: Mapping[str, bytes] | None = None,
    hosts: Hosts = ALONE,
) -> Place:
    """Writes `model_dir/checkpoint_<step>`, here or in a bucket, in T5X's Orbax layout; returns where it is.

    `flat_state`: path -> array (NumPy or JAX, on any devices), with `state/step` equal to `step`.
    `extras`: small files kept inside the checkpoint. A checkpoint of that step that is already
    there is replaced in one step; in a bucket it goes first. On many `hosts` all call this, and each writes
    what it holds. Raises `UserError` if the disk is full or refuses; then nothing else has changed.
    """
    held = int(np.asarray(flat_state[STEP]).reshape(()))
    if held != step:
        raise ValueError(f"asked to save step {step}, but {STEP} is {held}")
    if hosts.count > 1 or is_remote(model_dir):
        from kcmoe.checkpoint import together

        for name in extras or {}:
            checksums.check_extra_name(name)
        target = place(model_dir) / f"checkpoint_{step}"
        return together.save(target, step, flat_state, extras or {}, hosts)
    tree = {path: shape_dtype(array) for path, array in flat_state.items()}
    leaves = ((path, np.asarray(array)) for path, array in flat_state.items())
    final = os.path.join(model_dir, f"checkpoint_{step}")
    return write_checkpoint(
        final, formats.T5X_ORBAX, tree, leaves, about=Provenance(step), extras=extras
    )


def write_checkpoint(
    final: str | os.PathLike[str],
    format: str,
    tree: Mapping[str, ShapeDtype],
    leaves: Iterable[tuple[str, np.ndarray]],
    *,
    about: Provenance,
    extras: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes the leaves as one checkpoint `final` in `format` and returns its path.

    `leaves` yields every path of `tree` once. Raises `UserError`, with nothing written, for an
    unknown format, paths that no format can hold, a place that is not on this machine, or a disk that
    is full or refuses. What is converted is read back before it gets its name.
    """
    chosen = formats.named(format)
    if is_remote(final):
        raise UserError(
            f"{final} is not on this machine: write to a local folder, then copy it there"
        )
    for name in extras or {}:
        checksums.check_extra_name(name)
    target = Path(final)
    try:
        trees.check_paths(tree)
    except ValueError as error:
        raise UserError(f"{about.path or target} cannot be written in {format}: {error}") from error
    with durable.staged(target) as folder:
        writer = chosen.writer(folder, tree, about)
        sums: dict[str, tuple[ShapeDtype, str]] = {}
        for path, array in leaves:
            if shape_dtype(array) != tree[path]:
                raise AssertionError(
                    f"{path}: {shape_dtype(array)} where {tree[path]} was announced"
                )
            writer.add(path, array)
            sums[path] = tree[path], checksum(array)
        if sums.keys() != tree.keys():
            raise AssertionError(f"never came: {sorted(tree.keys() - sums.keys())}")
        if not chosen.foreign:
            checksums.write(folder, about.step, sums, extras or {})
        writer.finish(str(target))
        if about.path is not None and not chosen.foreign:
            _read_back(chosen.reader(Folder(folder)), tree, target)
    return target


def _read_back(reader: Reader, tree: Mapping[str, ShapeDtype], target: Path) -> None:
    """Reads all that was written, checksums included. Raises `UserError` unless it is `tree`."""
    here, problems = reader.scan()
    problems = compare(here, tree, problems)
    for path, values in reader.read_all([path for path in tree if path not in problems]):
        if isinstance(values, Damaged):
            problems[path] = str(values)
    if problems:
        raise UserError(
            describe_problems(f"{target} could not be read back and was not written", problems)
        )


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    format: str,
    *,
    params_only: bool = False,
    dtype: str | None = None,
    vocabulary: str | None = None,
    progress: Callable[[int], Progress] | None = None,
) -> Path:
    """Writes the checkpoint `source` as `destination` in `format`; returns the new path.

    `params_only` leaves the optimizer state behind, as some formats always do, and takes the moving averages
    of the weights where the run kept them (EMA_DECAY); `dtype` ("float32",
    "bfloat16") is that of the parameters, theirs if None. `vocabulary` is the file of the vocabulary, for
    formats that hold it, if the one that is recorded is not there. `progress` gets the number of bytes and
    returns a function that is called with the bytes of each leaf. Every leaf is checked on the way:
    one that is damaged or not finite stops the conversion, and nothing is written. Raises
    `UserError` naming all such leaves, or for a destination that exists.
    """
    chosen, final = formats.named(format), Path(destination)
    if os.path.lexists(final):
        raise UserError(f"{final} exists already: choose another place, or remove it first")
    outputs.check_folder(destination)  # `final` has lost one of two slashes
    reader = open_checkpoint(source)
    whole = reader.tree()
    before = {
        path: leaf
        for path, leaf in whole.items()
        if is_parameter(path)
        or not (chosen.parameters_only or (params_only and is_optimizer(path)))
    }
    # Parameters alone are those to use, so the averages where the run kept some.
    alone = params_only or chosen.parameters_only
    sources = parameter_sources(reader) if alone else {}
    after = {path: _with_dtype(path, leaf, dtype) for path, leaf in before.items()}
    macros = reader.recorded()
    if vocabulary is not None:
        rows = run_config.sizes_of(whole).get("NUM_EMBEDDINGS", 0)
        macros = run_config.with_vocabulary(reader.path, macros, vocabulary, rows)
    extras = reader.extras()
    advance = progress(sum(leaf.nbytes for leaf in before.values())) if progress else None
    leaves = _checked(reader, {path: sources.get(path, path) for path in before}, after, advance)
    return write_derived(reader, final, format, after, leaves, macros, extras)


def write_derived(
    reader: Reader,
    final: str | os.PathLike[str],
    format: str,
    tree: Mapping[str, ShapeDtype],
    leaves: Iterable[tuple[str, np.ndarray]],
    macros: Mapping[str, Any],
    extras: Mapping[str, bytes] | None = None,
) -> Path:
    """As `write_checkpoint`, for leaves that were made from those of `reader`.

    What is written leaves config.gin behind, so it takes along what loading it needs of `macros`. Raises
    `UserError` where those do not belong to `tree`.
    """
    step, sizes = reader.step, sizes_of(tree)
    config = run_config.to_json(run_config.to_keep(reader.path, macros, sizes), step)
    return write_checkpoint(
        final,
        format,
        tree,
        leaves,
        about=Provenance(step, reader.path, {**macros, **sizes}),
        extras={**(extras or {}), run_config.JSON_FILE: config},
    )


def _checked(
    reader: Reader,
    sources: Mapping[str, str],
    after: dict[str, ShapeDtype],
    advance: Progress | None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the leaves `after`, each read from its path in `sources`."""
    problems: dict[str, str] = {}
    written = {source: path for path, source in sources.items()}
    for source, values in checked_leaves(reader, list(written), problems):
        if advance is not None:
            advance(values.nbytes)
        if not problems:
            path = written[source]
            yield path, values.astype(after[path].dtype, copy=False)
    if problems:
        raise UserError(describe_problems(f"{reader.path} was not converted", problems))


def _with_dtype(path: str, leaf: ShapeDtype, dtype: str | None) -> ShapeDtype:
    if dtype is None or not is_parameter(path) or leaf.dtype.kind in "biu":
        return leaf
    return ShapeDtype(leaf.shape, named_dtype(dtype))
