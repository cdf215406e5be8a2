# SPDX-License-Identifier: Apache-2.0
"""The model directory: its `config.gin`, and what may not change once a run has begun there.

Two kinds of settings are fixed for the life of a directory: sizes, because the weights have them,
and what decides the batches, because a resumed run must see those that the stopped one would have
seen. Everything else may change between starts (and the change is printed).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kcmoe.checkpoint.run_config import CONFIG_FILE
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.errors import UserError
from kcmoe.io import durable
from kcmoe.io.remote import is_remote

# Fields of ModelConfig that only say how, or how much, is computed; the weights do not have them.
_FREE_MODEL_FIELDS = {
    "group_size", "train_expert_capacity_factor", "eval_expert_capacity_factor", "scale",
    "dropout_rate", "expert_dropout_rate", "activation_dtype", "moe_truncated_dtype",
    "num_expert_replicas", "routing", "dispatch", "remat",
}  # fmt: skip
_SIZES = tuple(
    field.metadata["macro"]
    for field in dataclasses.fields(ModelConfig)
    if field.name not in _FREE_MODEL_FIELDS
)
_BATCHES = (
    "MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS", "RANDOM_SEED", "PACK", "NOISE_DENSITY",
    "MEAN_NOISE_SPAN_LENGTH",
)  # fmt: skip
FIXED = frozenset((*_SIZES, *_BATCHES))


def open_model_dir(macros: gin_files.Macros) -> tuple[Path, list[str]]:
    """Compares the settings with those MODEL_DIR was begun with; writes nothing.

    Returns:
      The folder, which may not be there yet, and one line per setting that changed and may.

    Raises:
      UserError: if a fixed setting differs, or the folder cannot be written to.
    """
    text = str(macros.require("MODEL_DIR"))
    if is_remote(text):
        raise UserError(
            f"MODEL_DIR = {text!r} is in a bucket, but the engine trains into a folder of this "
            "machine; copy it afterwards, or train with T5X, which writes to buckets"
        )
    path = Path(text)
    above = existing(path)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f"MODEL_DIR {path} cannot be written to: {above} is no folder one may write"
        )
    config = path / CONFIG_FILE
    if not os.path.exists(config):
        return path, []
    # `foreign`: the run may have begun on a pod, whose config.gin has T5X's bindings too.
    before = gin_files.parse([str(config.absolute())], foreign=True)
    return path, compare(path, before, macros)


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = path.absolute()
    # `os.path.exists`, as `Path.exists` raises where one may not look.
    return next(folder for folder in (path, *path.parents) if os.path.exists(folder))


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Makes the folder and keeps a second run out of it; a killed run leaves no lock behind.

    Where the file system has no locks, it only says so with `say`.
    """
    lock = path / ".lock"
    with durable.user_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        file = open(lock, "w")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another kcmoe train is writing to MODEL_DIR {path}; wait for it, stop it, "
                "or take another MODEL_DIR"
            ) from None
        except OSError as error:
            say(
                f"warning     {path} cannot be locked ({error.strerror}): nothing keeps a second "
                "kcmoe train out of it, so start none"
            )
        try:
            yield
        finally:
            if list(path.iterdir()) == [lock]:  # refused before anything was written
                lock.unlink()
                path.rmdir()


def compare(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per setting that changed; raises `UserError` if a fixed one did."""
    changed = [name for name in sorted(before) if name in now and before[name] != now[name]]
    fixed = [name for name in changed if name in FIXED]
    if fixed:
        listing = ", ".join(f"{name} {before[name]!r} -> {now[name]!r}" for name in fixed)
        raise UserError(
            f"MODEL_DIR {path} was begun with other settings: {listing}. Use the old ones to "
            "continue, or a new MODEL_DIR (with INITIAL_CHECKPOINT_PATH to start from these "
            "weights, where the sizes are equal)"
        )
    return [
        f"changed     {name} {before[name]!r} -> {now[name]!r} since the last start"
        for name in changed
        if name != "MODEL_DIR"
    ]


def write_config(path: Path, macros: gin_files.Macros) -> None:
    """Writes the whole operative config to `path`/config.gin, at once or not at all."""
    durable.write_file(path / CONFIG_FILE, gin_files.dump(macros).encode())
