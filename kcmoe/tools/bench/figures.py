# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks print: medians with their spread, and shares of the measured peak."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcmoe.config.model import ModelConfig
from kcmoe.model.flops import train_step_flops

if TYPE_CHECKING:
    from kcmoe.tools.bench.train import Shape, Worker


def describe(shape: Shape) -> str:
    """One line about the work of a step."""
    tokens = shape.batch * (shape.inputs + shape.targets)
    return f"batch {shape.batch} x ({shape.inputs} inputs + {shape.targets} targets) = {tokens:,} tokens"


def train_row(worker: Worker, config: ModelConfig, shape: Shape, peak: float) -> dict[str, Any]:
    """Figures of one engine; both are credited with the same useful FLOPs."""
    seconds = statistics.median(worker.seconds)
    flops = train_step_flops(config, shape.batch, shape.inputs, shape.targets)
    return {
        "engine": worker.name,
        "s/step": seconds,
        "min": min(worker.seconds),
        "max": max(worker.seconds),
        "tokens/s": shape.batch * (shape.inputs + shape.targets) / seconds,
        "GFLOP/s": flops / seconds / 1e9,
        "of peak %": 100 * flops / seconds / peak,
        "compile s": worker.facts["compile_s"],
        "GiB": worker.memory_gib,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text."""
    cells = [[_cell(value) for value in row.values()] for row in rows]
    header = list(rows[0])
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = [header, *cells]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def write_json(path: str, figures: Mapping[str, Any]) -> None:
    """Writes the figures, unrounded."""
    Path(path).write_text(
        json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
