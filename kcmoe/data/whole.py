# SPDX-License-Identifier: Apache-2.0
"""Whole rows of a file: some columns as texts to work with, all columns to be written again.

Reads through `tables` and the readers below it, so that what a column, an encoding or a damaged place is
stands there. Here rows keep what they are made of: text cells, JSON objects, or an Arrow batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kcmoe.data import (
    arrow,
    encodings,
    formats,
    json_rows,
    parquet,
    plain_values,
    tables,
    text_formats,
)
from kcmoe.errors import UserError
from kcmoe.io import given
from kcmoe.io.given import composed

WAYS = tables.Ways("give --lenient", "give --encoding={0}")
_CHUNK_CHARACTERS = 16 << 20  # a chunk of fewer rows where they are long


@dataclasses.dataclass(frozen=True)
class WholeChunk:
    """Some rows of a file.

    Attributes:
      asked: the columns asked for; None where a value is missing.
      count: rows.
      cells: every column, of a text file; else empty.
      objects: the rows of a JSON file; else empty.
      batch: the record batch of a parquet or Arrow file; else None.
    """

    asked: tables.Chunk
    count: int
    cells: tables.Chunk = dataclasses.field(default_factory=dict)
    objects: Sequence[Mapping[str, Any]] = ()
    batch: Any = None

    def records(self) -> Sequence[Mapping[str, Any]]:
        """Each row as a mapping from its columns to Python values."""
        if self.objects:
            return self.objects
        if self.batch is not None:
            columns = map(plain_values.values, self.batch.columns)
            return _rows(self.batch.schema.names, columns)
        return _rows(list(self.cells), self.cells.values())


def _rows(names: Sequence[str], columns: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


@dataclasses.dataclass(frozen=True)
class WholeFile:
    """What is known of a file before its rows are read.

    Attributes:
      path: the file.
      kind: one of `formats.FORMATS`; that of a table called .txt is ".tsv".
      names: its columns, those of the first object of a JSON file.
      encoding: of a text file, a byte order mark taken into account; "" of others.
      schema: PyArrow's, of a parquet or Arrow file; else None.
    """

    path: str
    kind: str
    names: tuple[str, ...]
    encoding: str = ""
    schema: Any = None

    @functools.cached_property
    def quoted(self) -> bool:
        """Whether cells of this text file are written between quotes where they need it."""
        if self.kind != ".tsv" or formats.format_of(self.path) == ".txt":
            return self.kind == ".csv"
        return text_formats.is_quoted(self.path, self.encoding)

    def column(self, name: str) -> str | None:
        """The column called `name`, in the spelling of the file; None if there is none."""
        alike = [each for each in self.names if composed(each) == composed(name)]
        return alike[0] if alike else None


def look_at(path: str, encoding: str, wanted: Sequence[str]) -> WholeFile:
    """Looks at the beginning of a file.

    Args:
      path: local path or bucket address.
      encoding: of text files; a byte order mark wins.
      wanted: names, one of which in the first line makes a file .txt a table.

    Raises:
      UserError: if it cannot be read, or a name stands twice in its first line.
    """
    kind = formats.format_of(path)
    if kind in (".parquet", ".arrow"):
        if kind == ".parquet":
            with parquet.open_file(path) as file:
                schema = file.schema_arrow
        else:
            schema = arrow.schema_of(path)
        names = tuple(schema.names)
        text_formats.column_places(names, path, names)
        return WholeFile(path, kind, names, schema=schema)
    with encodings.open_text(path, encoding) as file:
        known = file.encoding
        try:
            if kind == ".jsonl":
                rows = json_rows.objects(file, path, wanted)
                first = next((row for _, row in rows if isinstance(row, dict)), {})
                return WholeFile(path, kind, tuple(first), known)
            if kind == ".txt":
                first_line = text_formats.first_cells(path, encoding)
                asked = [composed(name) for name in wanted]
                table = any(name in first_line for name in asked)
                if not table or first_line == [tables.PLAIN_COLUMN]:
                    return WholeFile(path, kind, (tables.PLAIN_COLUMN,), known)
                kind = ".tsv"
            quotes = formats.format_of(path) == ".tsv"
            cells = text_formats.header(file, path, kind, wanted, quotes)
            if isinstance(cells, encodings.BadRow):
                tables.bad_row(cells, path, "line 1", known, True, tables.Tally(), WAYS)
        except UnicodeError as error:
            raise encodings.not_text(path, encoding, error, WAYS.recode) from None
        except formats.UNREADABLE as error:
            raise UserError(f"{path} cannot be read: {error}") from None
    header: Any = cells
    text_formats.column_places(header, path, header)
    return WholeFile(path, kind, tuple(header), known)


def read(
    of: WholeFile, columns: Sequence[str], encoding: str, strict: bool, tally: tables.Tally
) -> Iterator[WholeChunk]:
    """Yields all rows, at most `tables.CHUNK_ROWS` at a time and fewer where they are long.

    Args:
      of: the file.
      columns: those that are worked with; their values are texts or numbers, or None where missing.
      encoding: of text files.
      strict: stop at what cannot be read rather than leave it out and count it.
      tally: counts are added here.

    Raises:
      UserError: as `tables.read_chunks` does.
    """
    path = of.path
    if of.kind in (".parquet", ".arrow"):
        part = parquet.whole if of.kind == ".parquet" else arrow.whole
        for found in part(path, columns, tables.CHUNK_ROWS):
            if isinstance(found, arrow.Damaged):
                tables.damaged_part(found, path, strict, tally, WAYS)
                continue
            tally.rows += found[1].num_rows
            yield WholeChunk(found[0], found[1].num_rows, batch=found[1])
    elif of.kind == ".jsonl":
        yield from _json(of, columns, encoding, strict, tally)
    else:
        places = text_formats.column_places(of.names, path, columns)
        for cells in tables.read_chunks(
            path,
            of.names,
            strict=strict,
            encoding=encoding,
            tally=tally,
            ways=WAYS,
            characters=_CHUNK_CHARACTERS,
        ):
            asked = {
                name: cells[of.names[place]] for name, place in zip(columns, places, strict=True)
            }
            yield WholeChunk(asked, len(cells[of.names[0]]), cells)


def _json(
    of: WholeFile, columns: Sequence[str], encoding: str, strict: bool, tally: tables.Tally
) -> Iterator[WholeChunk]:
    rows: list[dict[str, Any]] = []
    asked: list[list[Any]] = []
    held = 0

    def chunk() -> WholeChunk:
        tally.rows += len(rows)
        values = zip(*asked, strict=True)
        named = {name: list(column) for name, column in zip(columns, values, strict=True)}
        return WholeChunk(named, len(rows), objects=rows)

    unseen, any_row = list(columns), False
    with encodings.open_text(of.path, encoding) as file:
        try:
            for place, row in json_rows.objects(file, of.path, columns):
                cells = row if isinstance(row, encodings.BadRow) else json_rows.cells(row, columns)
                if isinstance(cells, encodings.BadRow):
                    tables.bad_row(cells, of.path, place, file.encoding, strict, tally, WAYS)
                    continue
                unseen, any_row = json_rows.lacking(row, unseen), True
                rows.append(row)
                asked.append(cells)
                held += sum(len(cell) for cell in cells if isinstance(cell, str))
                if len(rows) == tables.CHUNK_ROWS or held > _CHUNK_CHARACTERS:
                    yield chunk()
                    rows, asked, held = [], [], 0
        except UnicodeError as error:
            raise encodings.not_text(of.path, encoding, error, WAYS.recode) from None
        except formats.UNREADABLE as error:
            raise UserError(f"{of.path} cannot be read: {error}") from None
    if unseen and any_row:
        text_formats.column_places(of.names, of.path, unseen)
    if rows:
        yield chunk()


def chosen(of: WholeFile, wanted: Sequence[str], named: Sequence[str], task: str) -> list[str]:
    """The columns of a file that are the columns of a task, in its order.

    Args:
      of: the file.
      wanted: the task's names.
      named: the user's choice in the same order, or empty.
      task: its name, for messages.

    Raises:
      UserError: if they are not there, or not as many.
    """
    if named:
        if len(named) != len(wanted):
            raise UserError(
                f"--columns names {len(named)}, but {task} reads {len(wanted)}: {', '.join(wanted)}"
            )
        for name in named:
            inside = "." in name and of.column(name.partition(".")[0])
            if not inside and of.names:
                text_formats.column_places(of.names, of.path, [name])
        return [of.column(name) or name for name in named]
    if of.kind == ".jsonl" and not of.names:
        return list(wanted)  # no row at all
    own = [of.column(name) for name in wanted]
    found = [name for name in own if name is not None]
    if len(found) == len(wanted):
        return found
    if len(wanted) == 1:
        plain = of.column(tables.PLAIN_COLUMN)
        if plain is not None or len(of.names) == 1:
            return [plain or of.names[0]]
    missing = next(name for name, column in zip(wanted, own, strict=True) if column is None)
    if of.kind == ".txt":
        raise UserError(
            f"{of.path} is plain lines, but {task} reads {len(wanted)} columns; give a table whose first "
            f"line names them: {', '.join(wanted)}"
        )
    listed = ", ".join(given.composed(name) for name in of.names[:20]) or "none"
    order = ", ".join(wanted)
    if of.kind in (".csv", ".tsv"):
        raise UserError(
            f"the first line of {of.path} names no {missing}, but {listed}; if these are its columns, say "
            f"which are {order}: --columns=A,…; if it is a row, put a line with names above it"
        )
    raise UserError(
        f"{of.path} has no column {missing}, but {listed}; say which are {order}: --columns=A,…"
    )
