# SPDX-License-Identifier: Apache-2.0
"""Rows out of text files: plain lines, TSV and CSV, each with its place for messages.

TSV has no quoting (as KorNLI is published) unless every quote in the file is one that pandas writes; CSV
has. A table called .txt keeps its quotes, as NSMC, which has such ones, is read everywhere. A cell with
nothing in it is an empty text, though its writer may have meant null: that is seen to where texts are used.
What is done about a bad row is decided in `tables`.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from kcmoe.data.encodings import BadByte, BadRow, bad_byte, open_text
from kcmoe.errors import UserError, near_misses
from kcmoe.io.given import composed

# A cell larger than this is a missing line break or quote, not a text.
MAX_CELL_BYTES = 64 << 20
_RETURN = "\udbff"  # stands for a carriage return inside a row; no decoder gives this one either


def column_places(header: Sequence[str], path: str, columns: Sequence[str]) -> list[int]:
    """Places of `columns` in `header`, names compared composed.

    Raises:
      UserError: with near misses for a column that is not there, or one that is there twice.
    """
    names = [composed(name) for name in header]
    for name in columns:
        if composed(name) not in names:
            hint = near_misses(name, names)
            listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" * (len(names) > 20))
            if len(names) == 1 and path.lower().endswith(".csv") and ";" in listed:
                hint += " It seems to have semicolons where CSV has commas."
            if names and names[0].startswith("sep="):
                hint += " Leave out its first line, which only Excel reads."
            if "\r" in listed:
                hint = " Its lines end in carriage returns, but a cell has a newline: end them with newlines."
                listed = listed.partition("\r")[0] + " …"
            raise UserError(f"{path} has no column {name}.{hint} Its columns: {listed or 'none'}")
        if (count := names.count(composed(name))) > 1:
            called = f"called {name}; rename" if name else "without a name; give names to"
            raise UserError(f"{path} has {count} columns {called} all but one")
    return [names.index(composed(name)) for name in columns]


Row = tuple[str, "list[Any] | BadRow"]
Reader = Callable[[Iterable[str], str, Sequence[str]], Iterator[Row]]


def lines(file: Iterable[str], path: str, columns: Sequence[str]) -> Iterator[Row]:
    """Yields each line as a row of one cell."""
    del path, columns
    for number, line in enumerate(file, 1):
        yield f"line {number}", bad_byte(line) or [line.rstrip("\r\n")]


def first_cells(path: str, encoding: str) -> list[str]:
    """The names that the first line has, if this is a file with tabs; composed and without blanks around."""
    with open_text(path, encoding) as file:
        line = file.readline(MAX_CELL_BYTES)
    return [composed(name.strip().strip('"')) for name in line.split("\t")]


def tsv(
    file: Iterable[str], path: str, columns: Sequence[str], quotes: bool = True
) -> Iterator[Row]:
    """Yields rows of a file with tabs between cells and names in its first line.

    Without `quotes` they are text, also where every one is as a program writes them.
    """
    yield from _rows(_tsv_records(file, path, quotes), path, columns)


def csv_rows(file: Iterable[str], path: str, columns: Sequence[str]) -> Iterator[Row]:
    """Yields rows of a CSV file with names in its first line."""
    yield from _rows(_Records(enumerate(file, 1), ","), path, columns)


def header(
    file: Iterable[str], path: str, kind: str, columns: Sequence[str], quotes: bool = True
) -> list[str] | BadByte:
    """The names in the first line of a table, ".csv" or ".tsv"; `columns` is what it should name.

    Raises:
      UserError: if the first line is missing, blank, or no CSV.
    """
    if kind == ".csv":
        records: Iterable[_Record] = _Records(enumerate(file, 1), ",")
    else:
        records = _tsv_records(file, path, quotes)
    for _, cells, text in records:
        return bad_byte(text) or _names(cells, path, columns)
    raise _headless(path, "is empty", columns)


def _names(cells: list[str] | BadRow, path: str, columns: Sequence[str]) -> list[str]:
    if isinstance(cells, BadRow):
        raise _headless(path, "has a first line that is not CSV", columns)
    if not any(name.strip() for name in cells):
        raise _headless(path, "has a blank first line", columns)
    return [name.strip() for name in cells]


# Line, cells, and the line or lines they are made of.
_Record = tuple[int, "list[str] | BadRow", str]


_ESCAPED = re.compile(r'\\"[^",\t\r\n]')
_SPARK = 'a quote in a cell is written "", not \\", as Spark does'


class _Records:
    """Records of CSV. After a bad one reading goes on in the line below the one where it began."""

    def __init__(self, numbered: Iterable[tuple[int, str]], delimiter: str):
        csv.field_size_limit(MAX_CELL_BYTES)
        self._numbered, self._delimiter = iter(numbered), delimiter
        self._waiting: deque[tuple[int, str]] = deque()
        self._record: list[tuple[int, str]] = []

    def _lines(self) -> Iterator[str]:
        while True:
            line = self._waiting.popleft() if self._waiting else next(self._numbered, None)
            if line is None:
                return
            self._record.append(line)
            body = line[1].rstrip("\r\n")
            # csv takes a carriage return for the end of a row, wherever it is.
            yield body.replace("\r", _RETURN) + line[1][len(body) :] if "\r" in body else line[1]

    def __iter__(self) -> Iterator[_Record]:
        reader = csv.reader(self._lines(), delimiter=self._delimiter, strict=True)
        while True:
            self._record.clear()
            try:
                cells: list[str] | BadRow = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = BadRow(f"not CSV ({error}; the row or its quote begins here)")
            number, text = self._record[0][0], "".join(line for _, line in self._record)
            if "\r" in text and not isinstance(cells, BadRow):
                cells = [cell.replace(_RETURN, "\r") for cell in cells]
            if '\\"' in text and (isinstance(cells, BadRow) or _ESCAPED.search(text)):
                cells = BadRow(f"not CSV ({_SPARK})")
            if isinstance(cells, BadRow):
                self.again()
                reader = csv.reader(self._lines(), delimiter=self._delimiter, strict=True)
            yield number, cells, text

    def again(self) -> None:
        """Has all lines of the last record but the first read again as records of their own."""
        self._waiting.extendleft(reversed(self._record[1:]))
        del self._record[1:]


def _tsv_records(file: Iterable[str], path: str, quotes: bool) -> Iterable[_Record]:
    numbered = enumerate(file, 1)
    known = not quotes
    for number, line in numbered:
        if not known and '"' in line:
            known = True
            if is_quoted(path, getattr(file, "encoding", "utf-8")):
                rest = _Records(_chain((number, line), numbered), "\t")
                yield from rest
                return
        yield number, line.rstrip("\r\n").split("\t"), line


def _chain(first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield first
    yield from rest


_QUOTED_CELL = r'"(?:[^"]|"")*"'
_SPARK_CELL = r'"(?:[^"\\]|\\.)*"'


def _record(quoted_cell: str) -> re.Pattern[str]:
    return re.compile(rf'(?:{quoted_cell}|[^"\t]*)(?:\t(?:{quoted_cell}|[^"\t]*))*')


_QUOTED_RECORD, _SPARK_RECORD = _record(_QUOTED_CELL), _record(_SPARK_CELL)
_CELL = re.compile(rf"(?:^|\t)({_QUOTED_CELL}|[^\t]*)")
# DuckDB needs quotes around # and around blanks at the ends, too.
_NEEDS_QUOTES = re.compile(r'""|[\t\r\n#]|^\s|\s$')
_SURE = re.compile(r'""|[\t\r\n]')
_SQLITE_QUOTES = re.compile("[\0- \"'\x7f-\U0010ffff]|^$")
_NO_TEXT = re.compile(r"[+-]?[\d.,:eE+-]*|[+-]?inf|nan|<?NA>?|null|\\N|true|false", re.IGNORECASE)


def is_quoted(path: str, encoding: str) -> bool:
    """Whether every quote of a TSV file is one that a writer of quotes put there.

    A cell that is quoted without need may be a quotation. So quotes count as such only if they follow one of
    the rules of those who write them: around what needs them (pandas, Polars, DuckDB), around all texts of a
    column or of the header (pandas' QUOTE_NONNUMERIC, Arrow, R), or around all that is not plain ASCII
    (sqlite3).

    Raises:
      UserError: if they are Spark's, which has a backslash before quotes inside; or if nothing but a cell
        over several lines speaks for quotes, and each of these could be a row.
    """
    needed = sqlite = True
    names_are = False
    tabs = doubtful = 0
    sure = False
    quoted_columns: set[int] = set()
    bare_columns: set[int] = set()
    with open_text(path, encoding) as file:
        for number, cells, text in _Records(enumerate(file, 1), "\t"):
            plain = text.rstrip("\r\n")
            if isinstance(cells, BadRow) or not _QUOTED_RECORD.fullmatch(plain):
                _refuse_sparks(path, encoding)
                return False
            found = _CELL.findall(plain)
            quoted = [len(cell) > 1 and cell[0] == '"' for cell in found]
            sqlite = sqlite and quoted == list(map(_sqlite_quotes, found))
            if number == 1:
                names_are = all(quoted)
                tabs = plain.count("\t")
                continue
            if "\n" in plain and all(line.count("\t") == tabs for line in plain.split("\n")):
                doubtful = doubtful or number
                continue
            sure = sure or any(
                q and _SURE.search(cell[1:-1]) for cell, q in zip(found, quoted, strict=True)
            )
            for column, cell in enumerate(found):
                if not quoted[column]:
                    if not _NO_TEXT.fullmatch(cell):
                        bare_columns.add(column)
                elif cell != '""' and not _NEEDS_QUOTES.search(cell[1:-1]):
                    needed = False
                    quoted_columns.add(column)
            if not (needed or sqlite or names_are or quoted_columns.isdisjoint(bare_columns)):
                return False
    if doubtful and not sure:
        raise UserError(
            f"{path}, line {doubtful}: a quote opens here and closes in a later line, but each of these "
            "lines could be a row; call the file .txt if its quotes are text, else write it as CSV"
        )
    return True


def _sqlite_quotes(cell: str) -> bool:
    """Whether sqlite3 has quotes around what a cell holds; it writes null as nothing."""
    bare = cell[1:-1] if cell.startswith('"') else cell or "null"
    return bool(_SQLITE_QUOTES.search(bare))


def _refuse_sparks(path: str, encoding: str) -> None:
    escaped = False
    with open_text(path, encoding) as file:
        for line in file:
            if '"' in line:
                if not _SPARK_RECORD.fullmatch(line.rstrip("\r\n")):
                    return
                escaped = escaped or '\\"' in line
    if escaped:
        raise UserError(
            f"{path}: {_SPARK}; write it with .option('escape', '\"'), or as JSON or parquet (in a file "
            "called .txt all quotes are text)"
        )


def _rows(records: Iterable[_Record], path: str, columns: Sequence[str]) -> Iterator[Row]:
    names: list[str] | None = None
    positions: list[int] = []
    for number, cells, text in records:
        place = f"line {number}"
        if bad := bad_byte(text):
            yield place, bad
        elif isinstance(cells, BadRow):
            yield place, cells
        if names is None:
            names = _names(cells, path, columns)
            if path.lower().endswith(".csv") and len(names) == 1 and "\t" in text:
                raise UserError(f"{path} has tabs, not commas, between its names; call it .tsv")
            positions = column_places(names, path, columns)
            continue
        if bad or isinstance(cells, BadRow):
            continue
        if cells in ([], [""]):
            if len(names) > 1:
                continue  # an empty line at the end, not a row
            cells = [""]
        if len(cells) != len(names):
            if isinstance(records, _Records):
                records.again()  # a quote that opened too early takes in the rows below
                if '\\"' in text:
                    yield place, BadRow(f"not CSV ({_SPARK})")
                    continue
            wrong = BadRow(f"wrong number of cells ({len(cells)}, the header has {len(names)})")
            yield place, wrong
        else:
            yield place, [cells[i] for i in positions]
    if names is None:
        raise _headless(path, "is empty", columns)


def _headless(path: str, what: str, columns: Sequence[str]) -> UserError:
    return UserError(
        f"{path} {what}; leave it out, or give it a header that names {', '.join(columns)}"
    )
