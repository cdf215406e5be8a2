# SPDX-License-Identifier: Apache-2.0
"""Where the shipped files are: gin configs, the vocabulary and the model.

In a clone they lie beside the package (`configs/`, `vocab/`, `weights/`); in an installed wheel they lie
inside it (`kcmoe/configs/` and so on). Nothing else in the package knows the difference.
"""

from __future__ import annotations

from pathlib import Path

from kcmoe.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


def roots() -> tuple[Path, ...]:
    """Folders that may hold `configs/`, `vocab/` and `weights/`, the clone first."""
    return (_PACKAGE.parent, _PACKAGE)


def find(relative: str) -> Path:
    """Returns the shipped file or folder `relative`, e.g. "configs/sizes/tiny.gin".

    Raises:
      UserError: if it is in none of the places a clone or a wheel would have it.
    """
    for root in roots():
        if (root / relative).exists():
            return root / relative
    looked = " and ".join(str(root) for root in roots())
    raise UserError(
        f"{relative} is not among the files shipped with Kc-MoE (looked in {looked}); "
        "install the package again or run from a clone"
    )
