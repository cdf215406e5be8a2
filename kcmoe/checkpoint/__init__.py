# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of every format that `formats` lists, read, checked and written.

`save`, `restore`, `open_checkpoint`, `convert`, `latest`, `all_checkpoints`, `remove_old` and `clean`
are all that the rest of the package uses. They are imported when first asked for, so that naming the
package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kcmoe.checkpoint.base import Reader
    from kcmoe.checkpoint.manage import all_checkpoints, clean, latest, remove_old
    from kcmoe.checkpoint.reading import open_checkpoint, restore
    from kcmoe.checkpoint.writing import convert, save

__all__ = [
    "Reader",
    "all_checkpoints",
    "clean",
    "convert",
    "latest",
    "open_checkpoint",
    "remove_old",
    "restore",
    "save",
]

_HOMES = {
    **dict.fromkeys(("all_checkpoints", "clean", "latest", "remove_old"), "manage"),
    **dict.fromkeys(("open_checkpoint", "restore"), "reading"),
    **dict.fromkeys(("convert", "save"), "writing"),
    "Reader": "base",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
