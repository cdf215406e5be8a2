# SPDX-License-Identifier: Apache-2.0
"""The one door to buckets: fsspec, set so that it works behind a proxy and without permissions to spare.

Checkpoints alone go another way, through TensorStore (`kcmoe.checkpoint.storage`).
"""

from __future__ import annotations

import os
from types import ModuleType


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is in a bucket or on a server."""
    return "://" in os.fspath(path)


def fsspec() -> ModuleType:
    """fsspec, to be imported this way before anything is opened."""
    # gcsfs asks over gRPC what kind of bucket it has. That call knows no HTTP proxy and waits a minute
    # for it; plain reads and lists do without.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec as module

    return module


def read_bytes(path: str) -> bytes:
    """A whole file, local or remote; raises what opening it raises."""
    if is_remote(path):
        with fsspec().open(path, "rb") as file:
            return file.read()
    with open(path, "rb") as file:
        return file.read()
