# SPDX-License-Identifier: Apache-2.0
"""Places that a person names for what is to be written, checked before any work is done.

A place is fit if a file can be made there now, which is tried: permissions, full names, read-only disks and
files in the place of folders all show at once. What is tried is removed again.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection
from pathlib import Path

from kcmoe.errors import UserError
from kcmoe.io import durable, remote

PICTURES = (".svg", ".png")


def check_file(
    path: str | os.PathLike[str],
    flag: str = "",
    *,
    overwrite: bool,
    endings: Collection[str] = (),
) -> None:
    """Raises `UserError` unless a file may be written at `path`, whose folders need not be there yet.

    Args:
      path: where.
      flag: the option or setting that says so, for the message.
      overwrite: whether a file that exists may be replaced (`--overwrite`).
      endings: those that the name may have, if not any.
    """
    named = _named(path, flag)
    ending = os.path.splitext(path)[1]
    if endings and ending not in endings:
        raise UserError(f"{named} must end in {' or '.join(endings)}")
    if endings and ending == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            f"{named}: PNG needs matplotlib: pip install matplotlib; or write .svg, which needs nothing"
        )
    if os.path.isdir(path):
        raise UserError(f"{named} is a folder: name a file in it")
    if os.path.lexists(path):
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{named} is no file but a device or a pipe: name a file")
        if not overwrite:
            raise UserError(
                f"{named} exists already: name another file, or add --overwrite to replace it"
            )
    _try(Path(path), named)


def check_folder(path: str | os.PathLike[str], flag: str = "") -> None:
    """Raises `UserError` unless files may be written below the folder `path`, which need not be there yet."""
    named = _named(path, flag)
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UserError(f"{named} is a file where a folder is needed: name another place")
    _try(Path(path) / "part", named)


def _named(path: str | os.PathLike[str], flag: str) -> str:
    named = f"{flag}={os.fspath(path)}" if flag else os.fspath(path)
    if not os.fspath(path):
        raise UserError(f"{named or 'the output'} names no place")
    if remote.is_remote(path):
        raise UserError(f"{named} is not on this machine: write to a local place, then copy it")
    return named


def _try(place: Path, named: str) -> None:
    """Makes and removes a file beside `place` under the kind of name that writing takes first."""
    made: list[Path] = []
    try:
        # `os.path.exists`, as `Path.exists` raises where looking is not permitted.
        made = [each for each in place.parents if not os.path.exists(each)]
        above = next(each for each in place.absolute().parents if os.path.exists(each))
        if not above.is_dir():
            raise UserError(
                f"{named} cannot be written: {above} is a file where a folder is needed"
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        trial = durable.temporary_name(place)
        trial.touch(exist_ok=False)
        trial.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{named} cannot be written: {reason}") from None
    finally:
        for folder in made:
            try:
                folder.rmdir()
            except OSError:
                break
