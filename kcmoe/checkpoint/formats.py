# SPDX-License-Identifier: Apache-2.0
"""The formats of checkpoints that exist here, in the order in which a folder is asked for them."""

from __future__ import annotations

from pathlib import Path

from kcmoe.checkpoint import legacy, orbax, safetensors
from kcmoe.checkpoint.base import Format
from kcmoe.checkpoint.huggingface import folder as huggingface
from kcmoe.checkpoint.storage import Folder
from kcmoe.errors import UserError, near_misses

# A new format is one file and one entry here.
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (orbax.FORMAT, legacy.FORMAT, huggingface.FORMAT, safetensors.FORMAT)
}
T5X_ORBAX = orbax.FORMAT.name
"""The format that training saves in."""


def named(name: str) -> Format:
    """Returns the format called `name`. Raises `UserError` if there is none."""
    if name not in FORMATS:
        raise UserError(
            f"unknown format {name!r}: take one of {', '.join(FORMATS)}.{near_misses(name, FORMATS)}"
        )
    return FORMATS[name]


def of(folder: Folder) -> Format | None:
    """Returns the format of a folder, None if no format recognises it.

    Raises `UserError` if one recognises it and cannot read it from where it is.
    """
    return next((each for each in FORMATS.values() if each.recognises(folder)), None)


def is_finished(checkpoint: Path) -> bool:
    """Tells whether a save in any of the formats has ended well in this folder."""
    folder = Folder(checkpoint)
    return any(each.finished(folder) for each in FORMATS.values())
