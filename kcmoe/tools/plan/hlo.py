# SPDX-License-Identifier: Apache-2.0
"""Reads a compiled program's text: its exchanges between devices, and how often its loops run.

XLA's cost analysis counts the body of a loop once. TPU programs say the cycles of each operation in their
text, so that what a loop leaves out can be added.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_BYTES = {
    **{name: 1 for name in ("pred", "s8", "u8", "f8e4m3fn", "f8e5m2")},
    **{name: 2 for name in ("bf16", "f16", "s16", "u16")},
    **{name: 4 for name in ("f32", "s32", "u32")},
    **{name: 8 for name in ("f64", "s64", "u64")},
}
_KINDS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(_KINDS)})(-start)?\(")
# What the TPU's compiler makes of some exchanges; a pair of operations has one `-start`.
_ASYNC = re.compile(rf" = (.*?) async-start\(.*calls=%?((?:{'|'.join(_KINDS)})[\w.\-]*)")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CALL = re.compile(r" (?:call|conditional)\(.*(?:to_apply|calls)=%?([\w.\-]+)")
_CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")


class Exchange(NamedTuple):
    """Exchanges of one kind and size, per device and step."""

    kind: str
    times: int
    bytes_each: int


class Program(NamedTuple):
    """What the text of a program tells.

    Attributes:
      exchanges: largest sum first.
      cycles: estimated, loops counted as often as they run; 0 where the text has none (not a TPU's).
      cycles_once: the same with each loop counted once, as XLA's own sums do.
    """

    exchanges: tuple[Exchange, ...]
    cycles: int
    cycles_once: int


def read(text: str) -> Program:
    """Reads the text of an optimized module."""
    bodies = dict(_computations(text))
    entry = next((name for name, lines in bodies.items() if lines[0].startswith("ENTRY")), "")
    runs = _runs(bodies, entry)
    found: Counter[tuple[str, int]] = Counter()
    cycles = once = 0
    for name, times in runs.items():
        for line in bodies[name]:
            if match := _CYCLES.search(line):
                cycles += times * int(match[1])
                once += int(match[1])
            if match := _COLLECTIVE.search(line):
                # An asynchronous one returns its operands as well as its result.
                size = _size(match[1]) // (2 if match[3] else 1)
                found[match[2], size] += times
    exchanges = [Exchange(kind, times, size) for (kind, size), times in found.items()]
    exchanges.sort(key=lambda one: -one.times * one.bytes_each)
    return Program(tuple(exchanges), cycles, once)


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Name and lines of each computation, its heading first."""
    name, lines = "", list[str]()
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name, lines = match[1], [line]
        elif line.startswith("}") and name:
            yield name, lines
            name = ""
        elif name:
            lines.append(line)


def _runs(bodies: Mapping[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs that is called from `entry` or from a loop; not those of fusions."""
    runs: Counter[str] = Counter()
    todo = [(entry, 1)]
    while todo:
        name, times = todo.pop()
        if name not in bodies:
            continue
        runs[name] += times
        for line in bodies[name]:
            if match := _WHILE.search(line):
                todo.append((match[2], times * _trips(bodies.get(match[1], []))))
            elif match := _CALL.search(line):
                todo.append((match[1], times))
            elif match := _ASYNC.search(line):
                todo.append((match[2], times))
    return dict(runs)


def _trips(condition: list[str]) -> int:
    """Turns of a loop that counts from 0 to a constant, as JAX's do; 1 where none is seen."""
    return max((int(n) for line in condition for n in _CONSTANT.findall(line)), default=1)


def _size(shapes: str) -> int:
    """Bytes of an array or a tuple of arrays, without the padding of tiles."""
    return sum(
        _BYTES.get(dtype, 0) * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in _SHAPE.findall(re.sub(r"\{[^{}]*\}", "", shapes))
    )
