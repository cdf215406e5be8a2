# SPDX-License-Identifier: Apache-2.0
"""SHA-256 and other digests of bytes, files and settings, as hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, BinaryIO


def sha256(content: bytes) -> str:
    """Returns the SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def file_digest(path: str | os.PathLike[str], kind: str = "sha256") -> str:
    """Returns the digest of a local file, read in pieces. `kind` is a name that hashlib knows."""
    with open(path, "rb") as file:
        return stream_digest(file, kind)


def stream_digest(file: BinaryIO, kind: str = "sha256") -> str:
    """Returns the digest of what is left of an open file."""
    digest = hashlib.new(kind)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def facts_digest(facts: Any) -> str:
    """Returns the SHA-256 of plain JSON values, the same whatever the order of their keys."""
    return sha256(json.dumps(facts, sort_keys=True).encode())
