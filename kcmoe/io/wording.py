# SPDX-License-Identifier: Apache-2.0
"""How things are put in words: sizes, tables, and the useful part of a library's error.

Imports nothing heavy, so that the light parts of the package stay light.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"^\[Errno \d+\] ")  # which Python puts before what the system says


def first_line(error: BaseException) -> str:
    """Returns the part of an exception's text that a person can use, at most 300 characters."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    text = _NUMBER.sub("", text)
    text = text.split(" [source locations=")[0].split(" [tensorstore_spec=")[0]
    return text if len(text) <= 300 else text[:297] + "..."


def listed(items: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Returns the first few of many names, and how many more there are: "a, b, c and 92 more"."""
    shown = separator.join(shortened(item, 300) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most:,} more"


def shown(value: object) -> str:
    """Returns a value that a person gave as Python writes it, a long one cut in its middle."""
    return shortened(repr(value), 120)


def shortened(text: str, most: int) -> str:
    """Returns `text`, cut in the middle if it has more than `most` characters."""
    if len(text) <= most:
        return text
    cut = f" … ({len(text) - most:,} more characters) … "
    return f"{text[: most * 2 // 3]}{cut}{text[len(text) - most // 3 :]}"


def human_bytes(size: float) -> str:
    """Returns a size as people read it: "57.7 MB"."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def gibibytes(size: float) -> str:
    """Returns a size as memory is sold: "15.75 GiB"."""
    return f"{size / 2**30:,.2f} GiB"


def aligned(rows: Sequence[Sequence[str]], align: str = "<>") -> list[str]:
    """Returns one line per row, columns as wide as their widest cell and two blanks apart.

    `align` has "<" (left) or ">" (right) for each column; its last sign serves all that follow.
    Every row has the same number of cells.
    """
    return ["  ".join(cells).rstrip() for cells in _padded(rows, align)]


def markdown(rows: Sequence[Sequence[str]], align: str = "<>") -> list[str]:
    """Returns the lines of a Markdown table; the first row is its head. `align` as in `aligned`."""
    padded = _padded(rows, align)
    rules = [
        "-" * len(cell) if sign == "<" else "-" * (len(cell) - 1) + ":"
        for cell, sign in zip(padded[0], _signs(align, len(padded[0])), strict=True)
    ]
    return [f"| {' | '.join(cells)} |" for cells in (padded[0], rules, *padded[1:])]


def _padded(rows: Sequence[Sequence[str]], align: str) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = _signs(align, len(widths))
    return [
        [f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths, strict=True)]
        for row in rows
    ]


def _signs(align: str, columns: int) -> str:
    return align[:columns] + align[-1] * (columns - len(align))
