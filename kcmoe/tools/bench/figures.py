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


def write_json(path: str, figures: Mapping[str, Any]) -> None:
    """Writes the figures, unrounded; raises `UserError` where the file cannot be written."""
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    durable.write_file(Path(path), f"{text}\n".encode())
