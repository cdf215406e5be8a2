# SPDX-License-Identifier: Apache-2.0
"""The one door to buckets: fsspec, set so that it works behind a proxy and without permissions to spare."""

from __future__ import annotations

import os
from types import ModuleType


def fsspec() -> ModuleType:
    """fsspec, to be imported this way before anything is opened."""
    # gcsfs asks over gRPC what kind of bucket it has. That call knows no HTTP proxy and waits a minute
    # for it; plain reads and lists do without.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec as module

    return module
