# SPDX-License-Identifier: Apache-2.0
"""The models that ship: checkpoints in `weights/NAME`, known by name wherever a checkpoint is asked for.

Each folder holds `model.safetensors`, `config.json`, `kcmoe.json`, and in `SHA256SUMS` their checksums.
Names become folders here and nowhere else; what is not a name comes back as the path that it means.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

from kcmoe.errors import UserError, near_misses
from kcmoe.io import given, hashing, resources

_log = logging.getLogger(__name__)
MODELS = ("tiny",)
DEFAULT = "tiny"
"""The model for those who name none."""
SUMS = "SHA256SUMS"
_FOLDER = "weights"
_MEND = "install Kc-MoE again, or in a clone `git checkout -- weights`"


def resolve(checkpoint: str | os.PathLike[str]) -> str:
    """The folder of the shipped model called `checkpoint`; any other path as it is.

    A folder of that name in the working directory wins, and that is said once.

    Raises:
      UserError: if files of the model are missing or differ from their checksums; as `given.path`.
    """
    text = given.path(checkpoint)
    if text not in MODELS:
        return text
    if os.path.isdir(text):
        _say_folder_wins(text)
        return os.path.join(os.curdir, text)
    folder = resources.find(f"{_FOLDER}/{text}")
    _check(folder, _state(folder))
    return str(folder)


def is_shipped(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of a shipped model, where nothing may be written."""
    place = Path(checkpoint).absolute()
    return any(place == root / _FOLDER / name for root in resources.roots() for name in MODELS)


def hint(missing: str | os.PathLike[str]) -> str:
    """A sentence for a checkpoint that is not there: which models can be named; "" where a path was meant."""
    text = os.fspath(missing)
    if os.path.basename(text) != text:
        return ""
    close = near_misses(text, MODELS, cutoff=0.5).removesuffix("?")
    if close:
        return f"{close}, the model that ships with Kc-MoE?"
    return f" The model that ships with Kc-MoE is called {' or '.join(MODELS)}."


@functools.cache
def _say_folder_wins(name: str) -> None:
    _log.warning(
        "%s is the folder %s of the working directory here, not the model that ships under that name",
        name,
        os.path.abspath(name),
    )


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of every file."""
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


@functools.cache
def _check(folder: Path, state: tuple[tuple[str, int, int], ...]) -> None:
    """Compares the files with `SHA256SUMS`; once for each `state` of the folder, as it reads all of them."""
    del state
    sums = folder / SUMS
    if not sums.is_file():
        raise UserError(f"the model that ships, {folder}, is not complete: no {SUMS}; {_MEND}")
    for line in sums.read_text("utf-8").splitlines():
        digest, _, name = line.partition("  ")
        file = folder / name
        if not name or not file.is_file():
            raise UserError(
                f"the model that ships, {folder}, is not complete: no {name or line}; {_MEND}"
            )
        found = hashing.file_digest(file)
        if found != digest:
            raise UserError(
                f"the model that ships is damaged: {file} has sha256 {found[:12]}…, not {digest[:12]}…; "
                f"{_MEND}"
            )
