# SPDX-License-Identifier: Apache-2.0
"""Copies a folder out of a bucket, each file checked, and goes on with what a stopped copy left."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kcmoe.corpus import fetch
from kcmoe.data import parquet
from kcmoe.errors import UserError
from kcmoe.io import remote

_BLOCK = 1 << 22


def copy(address: str, target: Path, say: Callable[[str], object] = print) -> None:
    """Copies the folder `address` of a bucket, each file checked against the bucket's MD5 if it has one.

    A file that is there with the right size and checksum is not copied again; a cut one is resumed.

    Raises:
      UserError: if the bucket cannot be read, a checksum differs, or the disk is full.
    """
    options = (
        {"token": "anon", "session_kwargs": {"trust_env": True}}
        if address.startswith("gs:")
        else {}
    )
    try:
        filesystem, root = remote.fsspec().core.url_to_fs(address, **options)
        found = filesystem.find(root, detail=True)
        if not found:
            raise UserError(f"{address} is empty or not public")
        total = sum(info["size"] for info in found.values())
        target.mkdir(parents=True, exist_ok=True)
        fetch.check_room(target, total - _bytes_below(target))
        for name, info in sorted(found.items()):
            local = target / os.path.relpath(name, root)
            copied = _copy_file(filesystem, name, info, local)
            checked = (
                "checksum is right" if info.get("md5Hash") else "size is right (no checksum given)"
            )
            say(f"{local}: {'copied' if copied else 'already there'}, {checked}")
    except UserError:
        raise
    except Exception as error:  # gcsfs raises its own HTTP errors as well as OSError
        if "ENOSPC" in repr(error) or getattr(error, "errno", None) == 28:
            raise UserError(f"the disk of {target} is full; start again to resume") from None
        raise UserError(
            f"{address} cannot be copied: {parquet.one_line(error)}; start again to resume"
        ) from None


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _copy_file(filesystem: Any, name: str, info: dict[str, Any], local: Path) -> bool:
    wanted = info.get("md5Hash")
    if local.exists() and local.stat().st_size == info["size"] and wanted in (None, _md5(local)):
        return False
    local.parent.mkdir(parents=True, exist_ok=True)
    part = local.with_name(local.name + ".part")
    start = part.stat().st_size if part.exists() and part.stat().st_size < info["size"] else 0
    with open(part, "ab" if start else "wb") as file:
        for block in _blocks(filesystem, name, start, info["size"], local.name):
            file.write(block)
    if part.stat().st_size != info["size"] or wanted not in (None, _md5(part)):
        part.unlink()
        raise UserError(f"{name} came with another checksum than the bucket's; start again")
    os.replace(part, local)
    return True


def _blocks(filesystem: Any, name: str, start: int, size: int, label: str) -> Iterator[bytes]:
    from tqdm import tqdm

    with tqdm(
        total=size, initial=start, desc=label, unit="B", unit_scale=True, disable=None, delay=1
    ) as bar:
        while start < size:
            block = filesystem.cat_file(name, start=start, end=min(start + _BLOCK, size))
            if not block:
                raise OSError(f"{name} ends after {start} of {size} bytes")
            start += len(block)
            bar.update(len(block))
            yield block


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
