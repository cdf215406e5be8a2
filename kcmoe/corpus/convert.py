# SPDX-License-Identifier: Apache-2.0
"""Makes the parquet tables of the catalogue out of the files as their authors published them."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kcmoe.corpus.types import Layout, Table
from kcmoe.data import encodings, parquet, tables
from kcmoe.data.splits import held_out
from kcmoe.errors import UserError
from kcmoe.io import json_text

_ARROW: dict[str, Callable[[Any], Any]] = {
    "": lambda pa: pa.string(),
    "int64": lambda pa: pa.int64(),
    "float64": lambda pa: pa.float64(),
    "bool": lambda pa: pa.bool_(),
    "labels": lambda pa: pa.list_(pa.int64()),
}
_PARSE: dict[str, Callable[[Any], Any]] = {
    "": str,
    "int64": int,
    "float64": float,
    "bool": {"True": True, "False": False}.__getitem__,
    "labels": lambda cell: [int(label) for label in cell.split(",")],
}


def convert(table: Table, raw: Path, data_dir: Path) -> tuple[int, str]:
    """Makes one parquet file from fetched files.

    Args:
      table: what to make.
      raw: folder of the fetched files.
      data_dir: DATA_DIR, below which the table goes.

    Returns:
      Rows written, and a line on what was left out ("" for nothing).

    Raises:
      UserError: if a value is not of its column's type, or the table cannot be written.
    """
    import pyarrow as pa

    kinds = [table.types.get(name, "") for name in table.columns]
    fields = zip(table.columns, kinds, strict=True)
    schema = pa.schema([(name, _ARROW[kind](pa)) for name, kind in fields])
    tally = tables.Tally()
    target = data_dir / table.file
    writer = parquet.Writer(target, schema)
    try:
        for source in table.sources:
            for rows in _chunks(raw / source, table, tally):
                values = [
                    [_PARSE[kind](cell) for cell in column]
                    for kind, column in zip(kinds, zip(*rows, strict=True), strict=True)
                ]
                arrays = [pa.array(v, field.type) for v, field in zip(values, schema, strict=True)]
                writer.write(pa.table(arrays, schema=schema))
        writer.close()
    except (ValueError, KeyError) as error:
        writer.abandon()
        raise UserError(
            f"{target}: a value of {table.sources} is not as expected ({error})"
        ) from None
    except BaseException:
        writer.abandon()
        raise
    return writer.rows, tally.summary()


def _chunks(path: Path, table: Table, tally: tables.Tally) -> Iterator[list[tuple[Any, ...]]]:
    """Rows of the source's columns that belong to the table's split, a chunk at a time."""
    if table.layout:
        rows = _laid_out(path, table.layout, list(table.columns.values()))
    elif any("." in column for column in table.columns.values()):
        rows = _objects(path, list(table.columns.values()))
    else:
        chunks = tables.read_chunks(
            str(path), list(table.columns.values()), strict=False, tally=tally, quotes=False
        )
        rows = itertools.chain.from_iterable(
            zip(*(chunk[column] for column in table.columns.values()), strict=True)
            for chunk in chunks
        )
    if table.validation_share:
        validation = table.split == "validation"
        rows = (row for row in rows if held_out(row[0], table.validation_share) == validation)
    while chunk := list(itertools.islice(rows, tables.CHUNK_ROWS)):
        yield chunk


def _laid_out(path: Path, layout: Layout, columns: list[str]) -> Iterator[tuple[str, ...]]:
    with encodings.open_text(str(path), "utf-8") as file:
        lines = (_readable(line).rstrip("\r\n") for line in file)
        if layout.quoted:
            cells: Iterator[list[str]] = csv.reader(lines, delimiter=layout.separator)
        else:
            cuts = len(layout.columns) - 1
            split = str.rsplit if layout.text_first else str.split
            cells = (split(line, layout.separator, cuts) for line in lines if line)
        header = list(layout.columns) or next(cells)
        places = [header.index(column) for column in columns]
        for row in cells:
            if len(row) != len(header):
                raise ValueError(f"{row} has {len(row)} cells, not {len(header)}")
            yield tuple(row[place] for place in places)


def _readable(line: str) -> str:
    if bad := encodings.bad_byte(line):
        raise ValueError(f"byte {bad} is not UTF-8: {line[:40]!r}")
    return line


def _objects(path: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of one list of JSON objects; a column "a.b" is b of the object a."""
    for row in json_text.parse(path.read_text(encoding="utf-8")):
        cells = []
        for column in columns:
            cell = row
            for key in column.split("."):
                cell = cell[key]
            cells.append(cell)
        yield tuple(cells)
