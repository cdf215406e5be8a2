# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint of any format, leaf by leaf, atomically, with checksums.

`save` is what the train loop calls; `write_checkpoint` takes the leaves from an iterator, so a
state need never be in memory at once. Nothing appears under the final name before every byte is on
the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kcmoe.checkpoint import manifest
from kcmoe.checkpoint.leaves import STEP_PATH, ShapeDtype, checksum, shape_dtype
from kcmoe.checkpoint.legacy import LegacyWriter
from kcmoe.checkpoint.orbax import OrbaxWriter
from kcmoe.checkpoint.safetensors import SafetensorsWriter
from kcmoe.errors import UserError, near_misses
from kcmoe.io import durable
from kcmoe.io.remote import is_remote


class _Writer(Protocol):
    def __init__(self, folder: Path, tree: Mapping[str, ShapeDtype]) -> None: ...

    def add(self, path: str, array: np.ndarray) -> None: ...

    def finish(self, final: str) -> None: ...


FORMATS: dict[str, type[_Writer]] = {
    "t5x_orbax": OrbaxWriter,
    "t5x_legacy": LegacyWriter,
    "safetensors": SafetensorsWriter,
}


def save(
    model_dir: str | os.PathLike[str],
    step: int,
    flat_state: Mapping[str, Any],
    extras: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes `model_dir/checkpoint_<step>` in T5X's Orbax layout and returns its path.

    `flat_state`: path -> array (NumPy or JAX, on any devices), with `state/step` equal to `step`.
    `extras`: small files kept inside the checkpoint. A checkpoint of that step that is already
    there is replaced in one step. Raises `UserError` if the disk is full or refuses; then nothing
    has changed.
    """
    held = int(np.asarray(flat_state[STEP_PATH]).reshape(()))
    if held != step:
        raise ValueError(f"asked to save step {step}, but {STEP_PATH} is {held}")
    tree = {path: shape_dtype(array) for path, array in flat_state.items()}
    leaves = ((path, np.asarray(array)) for path, array in flat_state.items())
    final = os.path.join(model_dir, f"checkpoint_{step}")
    return write_checkpoint(final, "t5x_orbax", tree, leaves, step=step, extras=extras)


def write_checkpoint(
    final: str | os.PathLike[str],
    format: str,
    tree: Mapping[str, ShapeDtype],
    leaves: Iterable[tuple[str, np.ndarray]],
    *,
    step: int | None = None,
    extras: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes the leaves as one checkpoint `final` in `format` and returns its path.

    `leaves` yields every path of `tree` once. Raises `UserError`, with nothing written, for an
    unknown format, a place that is not on this machine, or a disk that is full or refuses.
    """
    if format not in FORMATS:
        raise UserError(
            f"unknown format {format!r}: take one of "
            f"{', '.join(FORMATS)}.{near_misses(format, FORMATS)}"
        )
    if is_remote(final):
        raise UserError(
            f"{final} is not on this machine: write to a local folder, then copy it there"
        )
    for name in extras or {}:
        manifest.check_extra_name(name)
    target = Path(final)
    with durable.staged(target) as folder:
        writer = FORMATS[format](folder, tree)
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
        for name, content in (extras or {}).items():
            (folder / name).write_bytes(content)
        crcs = {name: manifest.bytes_checksum(content) for name, content in (extras or {}).items()}
        described = manifest.Manifest(step, dict(sorted(sums.items())), crcs)
        (folder / manifest.NAME).write_bytes(described.to_bytes())
        writer.finish(str(target))
    return target
