# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a model directory: which there are, the newest, and removing old ones.

Looks at names and at the marks of finished saves only, never at values.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kcmoe.checkpoint.formats import is_finished
from kcmoe.checkpoint.storage import Folder, step_of
from kcmoe.io import durable
from kcmoe.io.remote import Address, Place, is_remote

if TYPE_CHECKING:
    from kcmoe.checkpoint.bucket import Bucket

_PINNED = "PINNED"


def all_checkpoints(model_dir: str | os.PathLike[str]) -> Sequence[Place]:
    """Returns the finished checkpoints of a model directory, here or in a bucket, oldest first."""
    if is_remote(model_dir):
        return _bucket(model_dir).checkpoints()
    folder = Path(model_dir)
    found = []
    if folder.is_dir():
        for path in folder.iterdir():
            step = step_of(path)
            if step is not None and path.is_dir() and is_finished(path):
                found.append((step, path))
    return [path for _, path in sorted(found)]


def latest(model_dir: str | os.PathLike[str]) -> Place | None:
    """Returns the finished checkpoint with the highest step, or None."""
    found = all_checkpoints(model_dir)
    return found[-1] if found else None


def clean(model_dir: str | os.PathLike[str]) -> Sequence[Place]:
    """Removes what killed saves left behind and returns their paths.

    Call it when a run starts: what another process is saving at that time would be lost.
    """
    if is_remote(model_dir):
        return _bucket(model_dir).clean()
    return durable.remove_leftovers(Path(model_dir))


def remove_old(
    model_dir: str | os.PathLike[str],
    keep: int | None,
    protect: Collection[str | os.PathLike[str]] = (),
) -> list[Place]:
    """Keeps the `keep` newest checkpoints (None: all) and those in `protect`.

    Returns the paths of those it removed.

    Checkpoints that T5X has pinned (a file `PINNED` inside) stay too.
    """
    if keep is None:
        return []
    if keep < 1:
        raise ValueError(f"at least one checkpoint must be kept, not {keep}")
    protected = {Path(path).name for path in protect}
    removed: list[Place] = []
    for path in all_checkpoints(model_dir)[:-keep]:
        if path.name in protected or _is_pinned(path):
            continue
        if isinstance(path, Address):
            _bucket(model_dir).remove_checkpoint(path.name)
        else:
            durable.remove_folder(path)
        removed.append(path)
    return removed


def _is_pinned(checkpoint: Place) -> bool:
    # On a disk a link that leads nowhere, or a folder of that name, pins as well.
    if isinstance(checkpoint, Path):
        return os.path.lexists(checkpoint / _PINNED)
    return Folder(checkpoint).exists(_PINNED)


def _bucket(model_dir: str | os.PathLike[str]) -> Bucket:
    from kcmoe.checkpoint.bucket import Bucket  # whoever only predicts does without

    return Bucket(model_dir)
