# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all, whenever the process or the machine stops.

What is written has a temporary name beside its final one, is synced to the disk, and then renamed:
`write_file` for a small file, `staged` for a folder, `finish_file` for a file that the caller wrote
under a name of its own (a download that can be resumed, a shard). The temporary name is Orbax's, so
T5X too ignores and removes what a killed save leaves behind. This file knows nothing of contents.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kcmoe.errors import UserError
from kcmoe.io.remote import Address, Place
from kcmoe.io.wording import first_line, human_bytes

TEMPORARY = ".orbax-checkpoint-tmp-"
_LEFTOVER = re.compile(r".+(\.orbax-checkpoint-tmp-|\.tmp-)[\w-]+")
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_SPACE_WORDS = (
    "No space left",
    "ENOSPC",
    "Disk quota exceeded",
    "EDQUOT",
    "File too large",
    "EFBIG",
)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def staged(final: Path) -> Iterator[Path]:
    """Gives a temporary folder that becomes `final` when the block ends well, else vanishes.

    An existing `final` is replaced in one step. Raises `UserError` if the disk is full or refuses.
    """
    temporary = temporary_name(final)
    new_parents = [parent for parent in final.parents if not parent.exists()]
    with user_errors(final):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            sync_tree(temporary)
            _put_in_place(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            for parent in new_parents:
                with contextlib.suppress(OSError):
                    parent.rmdir()
            raise


@contextlib.contextmanager
def user_errors(final: Place) -> Iterator[None]:
    """Turns the errors of a disk or a bucket that is full or refuses into one `UserError`; others pass."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        text = first_line(error)
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(final, Address):
            # TensorStore begins with the kind of the failure, as in "PERMISSION_DENIED: ", and so does JAX.
            refused = re.match("[A-Z_]{5,}: ", str(error))
            if isinstance(error, OSError) or (refused and "jax" not in type(error).__module__):
                raise UserError(f"{final} cannot be written: {text}") from error
            raise
        if number in NO_SPACE or any(word in str(error) for word in _NO_SPACE_WORDS):
            raise UserError(
                f"no space left to write {final} ({_free(final)} free there): free some, or choose "
                "another folder; nothing half-written was left, and what was there before is "
                "untouched"
            ) from error
        # TensorStore reports the disk's refusals as ValueErrors that name the failed call.
        if isinstance(error, OSError) or "OS error" in str(error):
            raise UserError(f"{final} cannot be written: {text}") from error
        raise


def write_file(path: Path, content: bytes) -> None:
    """Writes a small file, and its folder where there is none, so that it is wholly there or as it was.

    Raises `UserError` if it cannot be written.
    """
    temporary = temporary_name(path)
    try:
        with user_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            finish_file(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def finish_file(partial: Path, final: Path) -> None:
    """Gives a file that is completely written its final name, once it is on the disk.

    Both names are in one file system; a file that has the final name is replaced. Raises OSError.
    """
    _sync(partial)
    partial.replace(final)
    _sync(final.parent)


def remove_folder(folder: Path) -> None:
    """Removes a folder. If the process is killed half-way, what remains has another name."""
    doomed = temporary_name(folder)
    with user_errors(folder):
        folder.rename(doomed)
        shutil.rmtree(doomed)


def remove_leftovers(parent: Path) -> list[Path]:
    """Removes what killed saves and removals left in `parent`, and returns the paths.

    What another process is saving there at that time is removed, too.
    """
    if not parent.is_dir():
        return []
    found = [path for path in sorted(parent.iterdir()) if _LEFTOVER.fullmatch(path.name)]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def temporary_name(final: Path) -> Path:
    """The name that what becomes `final` has until it is finished."""
    return final.with_name(f"{final.name}{TEMPORARY}{os.getpid()}-{time.time_ns()}")


def _put_in_place(temporary: Path, final: Path) -> None:
    if not final.exists():
        temporary.rename(final)
        _sync(final.parent)
        return
    if not _exchanged(temporary, final):
        aside = temporary_name(final)
        final.rename(aside)
        temporary.rename(final)
        aside.rename(temporary)
    _sync(final.parent)
    shutil.rmtree(temporary)


def _exchanged(first: Path, second: Path) -> bool:
    """Swaps two names in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    done: int = renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return done == 0


def sync_tree(folder: Path) -> None:
    """Waits until all files below a folder are on the disk."""
    # Side by side: file systems write the journal once for all syncs that wait for it.
    paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in (*names, "")]
    with ThreadPoolExecutor(max_workers=16) as pool:
        for _ in pool.map(_sync, paths):
            pass


def _sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(path: Path) -> str:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return human_bytes(shutil.disk_usage(folder).free)
