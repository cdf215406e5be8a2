# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: T5X's Orbax layout and old format, and safetensors, read, checked and written.

`save`, `restore`, `open_checkpoint`, `latest`, `all_checkpoints`, `remove_old` and `clean` are all
that the rest of the package uses. They are imported when first asked for, so that naming the
package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kcmoe.checkpoint.manage import all_checkpoints, clean, latest, remove_old
    from kcmoe.checkpoint.reader import Reader, open_checkpoint
    from kcmoe.checkpoint.restoring import restore
    from kcmoe.checkpoint.writer import save

__all__ = [
    "Reader",
    "all_checkpoints",
    "clean",
    "latest",
    "open_checkpoint",
    "remove_old",
    "restore",
    "save",
]

_HOMES = {
    **dict.fromkeys(("all_checkpoints", "clean", "latest", "remove_old"), "manage"),
    **dict.fromkeys(("Reader", "open_checkpoint"), "reader"),
    "restore": "restoring",
    "save": "writer",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
