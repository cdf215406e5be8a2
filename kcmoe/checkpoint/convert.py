# SPDX-License-Identifier: Apache-2.0
"""Converts a checkpoint from any format to any other, leaf by leaf.

Memory is that of a few leaves, whatever the size of the model. Every leaf is checked on the way:
one that is damaged or not finite stops the conversion, all such leaves are named, and nothing is
written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kcmoe.checkpoint import run_config
from kcmoe.checkpoint.leaves import OPTIMIZER_PREFIX, PARAMETER_PREFIX, ShapeDtype, named_dtype
from kcmoe.checkpoint.reader import Reader, describe_problems, open_checkpoint
from kcmoe.checkpoint.restoring import checked_leaves
from kcmoe.checkpoint.sizes import sizes_of
from kcmoe.checkpoint.writer import write_checkpoint
from kcmoe.errors import UserError

Progress = Callable[[int], object]


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    format: str,
    *,
    params_only: bool = False,
    dtype: str | None = None,
    progress: Callable[[int], Progress] | None = None,
) -> Path:
    """Writes the checkpoint `source` as `destination` in `format`; returns the new path.

    `params_only` leaves the optimizer state behind; `dtype` ("float32", "bfloat16") is that of the
    parameters, theirs if None. `progress` gets the number of bytes and returns what is told of each
    part. Raises `UserError` for a source that is not sound or a destination that exists.
    """
    final = Path(destination)
    if os.path.lexists(final):
        raise UserError(f"{final} exists already: choose another place, or remove it first")
    reader = open_checkpoint(source)
    before = {
        path: leaf
        for path, leaf in reader.tree().items()
        if not (params_only and path.startswith(OPTIMIZER_PREFIX))
    }
    after = {path: _with_dtype(path, leaf, dtype) for path, leaf in before.items()}
    step = reader.step
    # The copy leaves config.gin behind, so it takes along what loading it needs.
    config = run_config.to_json(run_config.to_keep(reader.path, sizes_of(after)), step)
    extras = {**reader.extras(), run_config.JSON_FILE: config}
    advance = progress(sum(leaf.nbytes for leaf in before.values())) if progress else None
    leaves = _checked(reader, list(before), after, advance)
    return write_checkpoint(final, format, after, leaves, step=step, extras=extras)


def _checked(
    reader: Reader, paths: Sequence[str], after: dict[str, ShapeDtype], advance: Progress | None
) -> Iterator[tuple[str, np.ndarray]]:
    problems: dict[str, str] = {}
    for path, values in checked_leaves(reader, paths, problems):
        if advance is not None:
            advance(values.nbytes)
        if not problems:
            yield path, values.astype(after[path].dtype, copy=False)
    if problems:
        raise UserError(describe_problems(f"{reader.path} was not converted", problems))


def _with_dtype(path: str, leaf: ShapeDtype, dtype: str | None) -> ShapeDtype:
    if dtype is None or not path.startswith(PARAMETER_PREFIX) or leaf.dtype.kind in "biu":
        return leaf
    return ShapeDtype(leaf.shape, named_dtype(dtype))
