# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks print and keep their figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kcmoe.io import durable, wording


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
    series: str | None = None,
) -> Picture:  # fmt: skip
    """Rows as bars: one group per `row[group]`, one bar in it per `row[series]`, as long as `row[value]`.

    Error bars reach as far as the further of `row["min"]` and `row["max"]`, where rows have them.
    """
    groups = list(dict.fromkeys(str(row[group]) for row in rows))
    kinds = list(dict.fromkeys(str(row[series]) if series else value for row in rows))
    values = [[math.nan] * len(groups) for _ in kinds]
    spread = [[0.0] * len(groups) for _ in kinds]
    for row in rows:
        at = kinds.index(str(row[series]) if series else value), groups.index(str(row[group]))
        values[at[0]][at[1]] = row[value]
        if value not in ("tokens/s",) and "min" in row:
            spread[at[0]][at[1]] = max(row["max"] - row[value], row[value] - row["min"])
    drawn = Bars(groups, list(zip(kinds, values, strict=True)), spread)
    return Picture(name, title, bars=drawn)


def add_outputs(parser: Parser) -> None:
    """`--json` and `--picture`, which `write` writes."""
    add_output(parser, "--json", help="also write the figures to FILE")
    add_output(parser, "--picture", help="also draw them, as .svg or .png", endings=PICTURES)


def write_picture(path: str | None, picture: Callable[[], Picture]) -> None:
    """Draws, if a path was given; raises `UserError` where the file cannot be written."""
    if path:
        from kcmoe.io.drawing_svg import save

        save(picture(), path, "--picture")


def write_json(path: str, figures: Mapping[str, Any]) -> None:
    """Writes the figures, unrounded; raises `UserError` where the file cannot be written."""
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    durable.write_file(Path(path), f"{text}\n".encode())
