# SPDX-License-Identifier: Apache-2.0
"""Figures of benchmarks as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

from kcmoe.config.arguments import Parser
from kcmoe.tools.bench import figures

ROWS = [
    {"tokens": 64, "way": "gather", "ms": 1.5},
    {"tokens": 64, "way": "einsum", "ms": 2.0},
    {"tokens": 512, "way": "gather", "ms": 9.0},
]


def test_rows_become_groups_of_bars() -> None:
    bars = figures.bars("dispatch", "title", ROWS, "tokens", "ms", "way").bars
    assert bars is not None and list(bars.groups) == ["64", "512"]
    assert [name for name, _ in bars.series] == ["gather", "einsum"]
    assert bars.series[0][1] == [1.5, 9.0]
    assert bars.series[1][1][0] == 2.0 and math.isnan(bars.series[1][1][1])  # was not measured


def test_what_is_asked_for_is_written(tmp_path: Path) -> None:
    parser = Parser(prog="kcmoe bench some")
    figures.add_outputs(parser)
    files = tmp_path / "a.json", tmp_path / "a.svg"
    args = parser.parse_args([f"--json={files[0]}", f"--picture={files[1]}"])
    figures.write(args, {"rows": ROWS}, lambda: figures.bars("x", "속도", ROWS, "way", "ms"))
    assert json.loads(files[0].read_text("utf-8")) == {"rows": ROWS}
    assert "속도" in files[1].read_text("utf-8")
