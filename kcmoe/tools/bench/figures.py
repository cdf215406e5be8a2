# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks print and keep their figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kcmoe.config.arguments import Parser, add_output
from kcmoe.io import durable, wording
from kcmoe.io.drawing import Bars, Picture
from kcmoe.io.outputs import PICTURES


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text."""
    cells = [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join(wording.aligned([list(rows[0]), *cells], ">"))


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def bars(
    name: str, title: str, rows: Sequence[Mapping[str, Any]], group: str, value: str,
    series: str = "",
) -> Picture:  # fmt: skip
    """Rows as bars: a group for each `row[group]`, in it a bar for each `row[series]`.

    Args:
      name, title: of the picture.
      rows: as `table` takes them.
      group: key of what stands beside a group of bars.
      value: key of how long a bar is.
      series: key of what the bars of a group are called; "" for one bar each.
    """
    groups = list(dict.fromkeys(str(row[group]) for row in rows))
    kinds = list(dict.fromkeys(str(row[series]) if series else value for row in rows))
    values = [[math.nan] * len(groups) for _ in kinds]
    for row in rows:
        kind = str(row[series]) if series else value
        values[kinds.index(kind)][groups.index(str(row[group]))] = float(row[value])
    return Picture(name, title, bars=Bars(groups, list(zip(kinds, values, strict=True))))


def add_outputs(parser: Parser) -> None:
    """`--json` and `--picture`, for `write`."""
    add_output(parser, "--json", help="also write the figures to FILE")
    add_output(parser, "--picture", help="also draw them, as .svg or .png", endings=PICTURES)


def write(args: Any, figures: Mapping[str, Any], picture: Callable[[], Picture]) -> None:
    """Writes what `args` of `add_outputs` ask for; `UserError` where a file cannot be written."""
    if args.json:
        write_json(args.json, figures)
    if args.picture:
        from kcmoe.io.drawing_svg import save

        save(picture(), args.picture, "--picture")


def write_json(path: str, figures: Mapping[str, Any]) -> None:
    """Writes the figures, unrounded; raises `UserError` where the file cannot be written."""
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    durable.write_file(Path(path), f"{text}\n".encode())
