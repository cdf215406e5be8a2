# SPDX-License-Identifier: Apache-2.0
"""Rows out of text files: plain lines, TSV and CSV, each with its place for messages.

TSV has no quoting (as KorNLI is published) unless every quote in the file is one that pandas writes; CSV
has. A table called .txt keeps its quotes, as NSMC, which has such ones, is read everywhere. A cell with
nothing in it is an empty text, though its writer may have meant null: that is seen to where texts are used.
What is done about a bad row is decided in `tables`.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from kcmoe.data.formats import UNREADABLE, open_unpacked
from kcmoe.errors import UserError, near_misses
from kcmoe.io import given
from kcmoe.io.given import composed

# A cell larger than this is a missing line break or quote, not a text.
MAX_CELL_BYTES = 64 << 20
_SAMPLE_BYTES = 1 << 16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"\x84\x31\x95\x33", "gb18030"),
)
# Bytes that are not in the encoding, as `_mark` leaves them in the text; no decoder gives these signs.
_UNDECODED = re.compile("[\udc00-\udcff]")
_RETURN = "\udbff"  # stands for a carriage return inside a row; no decoder gives this one either


class BadRow(Exception):
    """One row that cannot be read; becomes `UserError` in strict reading."""


class BadByte(BadRow):
    """A row with a byte that is not in the file's encoding."""


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.object[error.start]), error.end


codecs.register_error("kcmoe-mark", _mark)


def bad_byte(text: str) -> BadByte | None:
    """The first byte in `text`, as `open_text` gives it, that was not in the encoding; None if all were."""
    found = None if text.isascii() else _UNDECODED.search(text)
    return BadByte(f"{ord(found[0]) - 0xDC00:#04x}") if found else None


def open_text(path: str, encoding: str) -> io.TextIOWrapper:
    """Opens a text file, decompressing by ending; lines end at \\n alone, never at other separators.

    A byte order mark wins over `encoding`, which is as `given.encoding` takes it. What cannot be decoded is
    left for `bad_byte` to find.

    Raises:
      UserError: if the file cannot be opened, or no encoding of files is called so.
    """
    name = given.encoding(encoding, path)
    start = _start(path, 4)
    mark = next((found for bom, found in _MARKS if start.startswith(bom)), "")
    if not mark and (other := _surely(path, start, name)):
        raise UserError(
            f"{path} is not {name} text but {other}; set TASK_ENCODING, or give --encoding={other}"
        )
    return io.TextIOWrapper(
        open_unpacked(path), encoding=mark or name, errors="kcmoe-mark", newline="\n"
    )


def _surely(path: str, start: bytes, name: str) -> str:
    """The encoding that a file is in, where another one would take any bytes for text; "" if not known."""
    if not name.startswith(("utf-16", "utf-32")):
        zeros = [number for number, byte in enumerate(start) if byte == 0]
        if zeros in ([1, 3], [0, 2]):
            return "utf-16-le" if zeros[0] else "utf-16-be"
    if name != "utf-8" and not given.holds_hangul(name):
        text = _decoded(_start(path, _SAMPLE_BYTES), "utf-8")
        if "\ufffd" not in text and any("가" <= sign <= "힣" for sign in text):
            return "utf-8"
    return ""


def _start(path: str, size: int) -> bytes:
    try:
        with open_unpacked(path) as raw:
            start: bytes = raw.read(size)
            return start
    except (*UNREADABLE, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None


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
            raise UserError(f"{path} has no column {name}.{hint} Its columns: {listed or 'none'}")
        if (count := names.count(composed(name))) > 1:
            raise UserError(f"{path} has {count} columns called {name}; rename all but one")
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
            if isinstance(cells, BadRow) and '\\"' in text:
                cells = BadRow('not CSV (a quote in a cell is written "", not \\", as Spark does)')
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


_NEEDS_QUOTES = re.compile(r'""|[\t\r\n]|^[\s#]|\s$')
_QUOTED_CELL = r'"(?:[^"]|"")*"'
_QUOTED_RECORD = re.compile(rf'(?:{_QUOTED_CELL}|[^"\t]*)(?:\t(?:{_QUOTED_CELL}|[^"\t]*))*')


def is_quoted(path: str, encoding: str) -> bool:
    """Whether every quote of a TSV file is one that a writer of quotes put there, as pandas does.

    A cell that is quoted without need may be a quotation; it counts only where the whole row is quoted, or
    the whole header, as Arrow and R do with all that are texts. DuckDB needs quotes around blanks at the ends
    and # at the beginning.
    """
    names_are = False
    with open_text(path, encoding) as file:
        for number, cells, text in _Records(enumerate(file, 1), "\t"):
            if isinstance(cells, BadRow):
                return False
            if '"' not in text:
                continue
            plain = text.rstrip("\r\n")
            if not _QUOTED_RECORD.fullmatch(plain):
                return False
            quoted = re.findall(rf"(?:^|\t)({_QUOTED_CELL})", plain)
            needed = all(cell == '""' or _NEEDS_QUOTES.search(cell[1:-1]) for cell in quoted)
            names_are = names_are or (number == 1 and len(quoted) == len(cells))
            if not needed and len(quoted) < len(cells) and not names_are:
                return False
    return True


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


def likely_encoding(path: str, tried: str) -> str:
    """The encoding that the beginning of a file is in, where it is clearly another than `tried`, else ""."""
    sample = _start(path, _SAMPLE_BYTES)
    tried_text = _decoded(sample, tried)
    errors = tried_text.count("\ufffd")
    if not errors:
        return ""
    for name in ("utf-8", "cp949", "utf-16-le", "utf-16-be"):
        if name in tried.replace("_", "-") or (name.startswith("utf-16") and b"\0" not in sample):
            continue
        text = _decoded(sample, name)
        hangul = sum("가" <= c <= "힣" for c in text)
        other = sum(not c.isascii() for c in text)
        if text.count("\ufffd") * 10 < errors and hangul > other * 0.5:
            return name
    return ""


def _decoded(sample: bytes, encoding: str) -> str:
    # The sample may end inside a character.
    return codecs.getincrementaldecoder(encoding)("replace").decode(sample)
