# SPDX-License-Identifier: Apache-2.0
"""Columns of Arrow tables, of whatever type, as values that JSON and the cells of a table can hold.

Times become text, since Python's have no nanoseconds and end with the year 9999.
"""

from __future__ import annotations

import bisect
import itertools
from typing import Any


def values(column: Any) -> list[Any]:
    """The cells of a PyArrow array as text, numbers, lists and objects; None for a missing one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, known = column.type, pa.types
    if known.is_dictionary(kind):
        words = values(column.dictionary)
        return [None if place is None else words[place] for place in column.indices.to_pylist()]
    if known.is_run_end_encoded(kind):
        words = values(column.values)
        return [words[place] for place in _run_places(column)]
    if known.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        rows = zip(*map(values, column.flatten()), strict=True) if names else [()] * len(column)
        there = column.is_valid().to_pylist()
        return [
            dict(zip(names, row, strict=True)) if is_there else None
            for row, is_there in zip(rows, there, strict=True)
        ]
    if known.is_map(kind):
        column = column.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
        return [
            None if cell is None else [list(pair.values()) for pair in cell]
            for cell in values(column)
        ]
    if _is_list(known, kind):
        inner = iter(values(pc.list_flatten(column)))
        counts = pc.list_value_length(column).to_pylist()
        return [None if n is None else list(itertools.islice(inner, n)) for n in counts]
    if known.is_interval(kind):
        return [None if cell is None else _interval(*cell) for cell in column.to_pylist()]
    if known.is_temporal(kind):
        return _times(pa, column)
    if known.is_floating(kind) and not known.is_float64(kind):
        # A float32 of 0.1 is 0.1, not 0.10000000149011612.
        numbers = column.to_numpy(zero_copy_only=False)
        return [None if cell != cell else float(str(cell)) for cell in numbers]
    cells: list[Any] = column.to_pylist()
    return cells


def decoded(column: Any) -> Any:
    """A run-end encoded PyArrow array without that encoding."""
    import pyarrow as pa

    return column.values.take(pa.array(_run_places(column), pa.int64()))


def _run_places(column: Any) -> list[int]:
    """Where among the values of its runs each cell is."""
    ends = column.run_ends.to_pylist()
    return [bisect.bisect_right(ends, column.offset + i) for i in range(len(column))]


def _is_list(known: Any, kind: Any) -> bool:
    return any(
        is_one(kind)
        for is_one in (
            known.is_list,
            known.is_large_list,
            known.is_fixed_size_list,
            known.is_list_view,
            known.is_large_list_view,
        )
    )


def _interval(months: int, days: int, nanoseconds: int) -> str:
    """As ISO 8601 writes it, e.g. P1M2DT0.000000003S."""
    whole, part = divmod(abs(nanoseconds), 1_000_000_000)
    sign = "-" if nanoseconds < 0 else ""
    return f"P{months}M{days}DT{sign}{whole}{f'.{part:09}' if part else ''}S"


def _times(pa: Any, column: Any) -> list[str | None]:
    zone = getattr(column.type, "tz", None)
    here = column.cast(pa.timestamp(column.type.unit)) if zone else column
    texts: list[str | None] = here.cast(pa.string()).to_pylist()
    # What has too many digits for Arrow, NumPy can write.
    far = [place for place, text in enumerate(texts) if text and text.startswith("<")]
    if zone:
        try:
            texts = column.cast(pa.string()).to_pylist()
        except pa.ArrowInvalid:  # a zone that is not known here
            texts = [text and f"{text}+0000" for text in texts]
    for place in far:
        text = str(here[place : place + 1].to_numpy(zero_copy_only=False)[0]).replace("T", " ")
        texts[place] = f"{text}+0000" if zone else text
    return texts
