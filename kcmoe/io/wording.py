# SPDX-License-Identifier: Apache-2.0
"""How checkpoint messages put things: sizes, and the useful part of a library's error.

Imports nothing, so that the light parts of the package stay light.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Returns the part of an exception's text that a person can use."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    text = text.split(" [source locations=")[0].split(" [tensorstore_spec=")[0]
    return text if len(text) <= 300 else text[:297] + "..."


def human_bytes(size: float) -> str:
    """Returns a size as people read it: "57.7 MB"."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
