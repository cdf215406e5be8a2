# SPDX-License-Identifier: Apache-2.0
"""Mutated files and settings, by a seed: right, or one line and status 2, and nothing half-written.

`benchmarks/fuzz.py` runs the same for as long as one likes.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import fuzz

_COMPILE = {"piped", "resumed"}  # programs of their own, each time


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] if kind in _COMPILE else [])
        for kind in sorted(fuzz.KINDS)
    ],
)
def test_mutations_are_read_rightly_or_refused(kind: str, tmp_path: Path) -> None:
    case = fuzz.KINDS[kind](tmp_path)
    original = fuzz.listing(tmp_path)
    assert case.run() == 0  # before it is mutated
    fuzz.restore(tmp_path, original)
    assert fuzz.listing(tmp_path) == original
    for number in range(8):
        fault = fuzz.one(case, random.Random(f"{kind} {number}"))
        assert not fault, f"{kind} {number}: {fault}"
