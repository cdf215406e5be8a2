# SPDX-License-Identifier: Apache-2.0
"""Rows out of text files: plain lines, TSV, CSV and JSON lines, each with its place for messages.

TSV has no quoting (as NSMC and KorNLI are published), CSV has. What is done about a bad row is decided in
`tables`.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from kcmoe.errors import UserError, near_misses
from kcmoe.io import remote

# A cell larger than this is a missing line break or quote, not a text.
MAX_CELL_BYTES = 64 << 20
# What a damaged compressed file raises; the last two are no OSErrors.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)


class BadRow(Exception):
    """One row that cannot be read; becomes `UserError` in strict reading."""


def open_text(path: str, encoding: str) -> io.TextIOWrapper:
    """Opens a text file, decompressing by ending; lines end at \\n alone, never at other separators."""
    try:
        raw = remote.fsspec().open(path, "rb", compression="infer").open()
        start = raw.read(4)
        raw.seek(0)
    except (*UNREADABLE, ValueError, ImportError) as error:
        raise UserError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    try:
        return io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    except LookupError:
        raise UserError(f"no encoding is called {encoding}") from None


def column_places(header: Sequence[str], path: str, columns: Sequence[str]) -> list[int]:
    """Places of `columns` in `header`; `UserError` with near misses for a column that is not there."""
    missing = [name for name in columns if name not in header]
    if missing:
        hint = near_misses(missing[0], header)
        raise UserError(
            f"{path} has no column {missing[0]}.{hint} Its columns: {', '.join(header) or 'none'}"
        )
    return [list(header).index(name) for name in columns]


Row = tuple[str, "list[Any] | BadRow"]
Reader = Callable[[Iterable[str], str, Sequence[str]], Iterator[Row]]


def lines(file: Iterable[str], path: str, columns: Sequence[str]) -> Iterator[Row]:
    """Yields each line as a row of one cell."""
    del path, columns
    for number, line in enumerate(file, 1):
        yield f"line {number}", [line.rstrip("\r\n")]


def tsv(file: Iterable[str], path: str, columns: Sequence[str]) -> Iterator[Row]:
    """Yields rows of a file with tabs between cells and names in its first line."""
    yield from _cells(
        ((i, x.rstrip("\r\n").split("\t")) for i, x in enumerate(file, 1)), path, columns
    )


def csv_rows(file: Iterable[str], path: str, columns: Sequence[str]) -> Iterator[Row]:
    """Yields rows of a CSV file with names in its first line."""
    csv.field_size_limit(MAX_CELL_BYTES)
    reader = csv.reader(file, strict=True)

    def numbered() -> Iterator[tuple[int, list[str]]]:
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
            yield reader.line_num, cells

    yield from _cells(numbered(), path, columns)


def _cells(
    lines: Iterator[tuple[int, list[str]]], path: str, columns: Sequence[str]
) -> Iterator[Row]:
    _, header = next(lines, (0, None))
    if header is None or not any(name.strip() for name in header):
        what = "is empty" if header is None else "has a blank first line"
        raise UserError(
            f"{path} {what}; leave it out, or give it a header that names {', '.join(columns)}"
        )
    positions = column_places([name.strip() for name in header], path, columns)
    for number, cells in lines:
        place = f"line {number}"
        if cells in ([], [""]) and len(header) > 1:
            continue  # an empty line at the end, not a row
        if len(cells) != len(header):
            wrong = BadRow(f"wrong number of cells ({len(cells)}, the header has {len(header)})")
            yield place, wrong
        else:
            yield place, [cells[i] for i in positions]


def _json_values(file: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Objects of a file of JSON lines, or of one that is a single list (as KLUE publishes its sets)."""
    lines = iter(file)
    first = next(lines, "")
    if first.lstrip().startswith("["):
        try:
            for number, value in enumerate(json.loads(first + "".join(lines)), 1):
                yield f"element {number}", value
        except (ValueError, RecursionError) as error:
            yield "as a whole", BadRow(f"not JSON ({error})")
        return
    for number, line in enumerate(itertools.chain([first], lines), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"line {number}", BadRow(f"not JSON ({error})")


def jsonl(
    file: Iterable[str], path: str, columns: Sequence[str], lists: Sequence[str]
) -> Iterator[Row]:
    """Yields rows of a file of JSON objects; only the columns `lists` may hold lists."""
    seen: set[str] = set()
    for place, row in _json_values(file):
        if isinstance(row, BadRow):
            yield place, row
            continue
        if not isinstance(row, dict):
            yield place, BadRow("not a JSON object")
            continue
        missing = [name for name in columns if name not in row]
        if missing and not seen:
            column_places(list(row), path, columns)  # the first row lacks it: a renamed column
        seen.update(row)
        if missing:
            yield place, BadRow(f"no column {missing[0]}")
        elif any(_is_nested(row[name], name in lists) for name in columns):
            yield place, BadRow("a list or object where a text is needed")
        elif any(
            isinstance(row[n], str) and not row[n].isascii() and _broken(row[n]) for n in columns
        ):
            yield place, BadRow("half a surrogate pair in the text")
        else:
            yield place, [row[name] for name in columns]


def _is_nested(value: Any, list_allowed: bool) -> bool:
    if isinstance(value, list) and list_allowed:
        return any(isinstance(each, list | dict) for each in value)
    return isinstance(value, list | dict)


def _broken(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def looks_like_cp949(error: UnicodeDecodeError, tried: str) -> bool:
    """Whether bytes that are not in the encoding `tried` are probably Korean text in CP949."""
    name = codecs.lookup(tried).name
    if name == "cp949" or (name == "utf-8" and not error.object[: error.start].isascii()):
        return False  # good characters before the bad byte: UTF-8, but damaged
    # The decoder's buffer may end inside a character.
    text = error.object[:4096].decode("cp949", errors="ignore")
    hangul = sum("가" <= c <= "힣" for c in text)
    return hangul > len(text) * 0.2
