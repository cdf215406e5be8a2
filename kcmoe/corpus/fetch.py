# SPDX-License-Identifier: Apache-2.0
"""Fetches one file over HTTP: resumed after a cut, checked, and under its name only when it is whole.

Uses the standard library, so the proxies of the environment (`https_proxy`, `no_proxy`) are used and
redirects followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kcmoe.errors import UserError
from kcmoe.io import durable

_BLOCK = 1 << 18
_ATTEMPTS = 5
_TIMEOUT_S = 30.0
_BROKEN = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


class _GiveUp(Exception):
    """Raised when an address does not give the file, so that the next one is tried."""


def git_blob(path: Path) -> str:
    """Git's id of a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fetch(
    urls: Sequence[str], target: Path, blob: str, *, size: int = 0, pause_s: float = 1.0
) -> bool:
    """Brings a file to `target`, trying `urls` in order.

    Args:
      urls: addresses of the same file, mirrors first.
      target: where it goes; `<target>.part` holds what a cut connection left.
      blob: git's id of the content.
      size: bytes, 0 if unknown.
      pause_s: seconds to wait after the first failure, doubled each time.

    Returns:
      Whether anything was fetched; False if the right file was there already.

    Raises:
      UserError: if no address gives the right file, or the disk is full.
    """
    if target.exists() and git_blob(target) == blob:
        return False
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_room(target.parent, size)
        problems = []
        for url in urls:
            try:
                resumed = part.exists()
                found = _fetch_from(url, part, pause_s)
                if found != blob and resumed:  # the part that was there may be of another file
                    part.unlink()
                    found = _fetch_from(url, part, pause_s)
                if found == blob:
                    durable.finish_file(part, target)
                    return True
                part.unlink()
                problems.append(f"{url} gives another file (git blob {found}, expected {blob})")
            except _GiveUp as error:
                problems.append(str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk of {target.parent} is full; make room and start again, what was fetched is kept"
            ) from None
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
    raise UserError(
        "; ".join(problems) + ". Start again to resume, or name a mirror with --mirror=URL"
    )


def check_room(folder: Path, size: int) -> None:
    """Raises `UserError` if `folder` has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(f"the disk of {folder} has {free:,} bytes free, but {size:,} are needed")


def _fetch_from(url: str, part: Path, pause_s: float) -> str:
    """Completes `part`, taking broken connections up where they broke; returns its git blob id."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _read_once(url, part, before)
            return git_blob(part)
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:
                return git_blob(part)  # asked beyond the end: it is complete, or of another file
            if error.code < 500 and error.code not in (408, 429):
                raise _GiveUp(f"{url} answers {error.code} {error.reason}") from None
            reason = f"{error.code} {error.reason}"
        except _BROKEN as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures >= _ATTEMPTS:
            raise _GiveUp(f"{url} does not answer ({reason})")
        time.sleep(pause_s * 2**failures)


def _read_once(url: str, part: Path, start: int) -> None:
    request = urllib.request.Request(
        url, headers={"User-Agent": "kcmoe", "Accept-Encoding": "identity"}
    )
    if start:
        request.add_header("Range", f"bytes={start}-")
    with contextlib.closing(urllib.request.urlopen(request, timeout=_TIMEOUT_S)) as answer:
        resumed = answer.status == 206 and _starts_at(answer) == start
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise _GiveUp(
                f"{url} answers with a web page, not a file; perhaps that of a login or a proxy"
            )
        length = int(answer.headers.get("Content-Length") or 0)
        check_room(part.parent, length)
        received = 0
        with (
            open(part, "ab" if resumed else "wb") as file,
            _progress(part, start, length, resumed) as bar,
        ):
            while block := answer.read(_BLOCK):
                file.write(block)
                received += len(block)
                bar.update(len(block))
        if received < length:
            raise http.client.IncompleteRead(b"", length - received)


def _starts_at(answer: Any) -> int:
    content_range = answer.headers.get("Content-Range", "")
    first = content_range.removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else -1


def _progress(part: Path, start: int, length: int, resumed: bool) -> Any:
    from tqdm import tqdm

    done = start if resumed else 0
    return tqdm(
        total=(done + length) if length else None,
        initial=done,
        desc=part.name.removesuffix(".part"),
        unit="B",
        unit_scale=True,
        disable=None,
        delay=0.5,
    )
