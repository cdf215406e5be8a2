# SPDX-License-Identifier: Apache-2.0
"""Rows out of parquet, TSV, CSV, JSON lines and plain text, local or in a bucket, a chunk at a time.

Parquet is read by row group, never whole. TSV has no quoting (as NSMC and KorNLI are published), CSV
has. What cannot be read is named with file and place: strict reading stops there, lenient reading
skips and counts. This file knows formats, not tasks.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import functools
import io
import itertools
import json
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from kcmoe.errors import UserError, near_misses
from kcmoe.io import remote, resources

CHUNK_ROWS = 4096
# A cell of a text file larger than this is a missing line break or quote, not a text.
MAX_CELL_BYTES = 64 << 20
FORMATS = (".parquet", ".tsv", ".csv", ".jsonl", ".txt")
# What a damaged compressed file raises; the last two are no OSErrors.
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)

Chunk = dict[str, list[Any]]


@dataclasses.dataclass
class Report:
    """What reading met. `dropped` counts rows by reason, `places` names the first few."""

    rows: int = 0
    nulls: int = 0
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    places: list[str] = dataclasses.field(default_factory=list)

    def drop(self, reason: str, place: str, rows: int = 1) -> None:
        """Counts rows that were left out."""
        self.dropped[reason] += rows
        if len(self.places) < 20:
            self.places.append(f"{place}: {reason}")

    def summary(self) -> str:
        """One line for a log, "" where nothing was left out."""
        if not self.dropped:
            return ""
        counts = ", ".join(f"{count:,} x {reason}" for reason, count in self.dropped.most_common())
        return f"left out {counts}; first at {self.places[0]}"


class BadRow(Exception):
    """One row or row group cannot be read; becomes `UserError` in strict reading."""


def expand(patterns: Sequence[str], data_dir: str | os.PathLike[str] = "") -> list[str]:
    """The files that `patterns` name, in order, each pattern's matches sorted.

    Args:
      patterns: paths with or without wildcards; relative ones are below `data_dir`; "samples:x" is shipped.
      data_dir: local folder or bucket address.

    Raises:
      UserError: if a pattern matches no file.
    """
    files: list[str] = []
    for pattern in patterns:
        if pattern.startswith("samples:"):
            pattern = f"{resources.find('kcmoe/samples')}/{pattern[8:]}"
        path = pattern if remote.is_remote(pattern) else os.path.join(data_dir, pattern)
        found = _matches(path)
        if not found:
            below = " Is DATA_DIR right? `kcmoe data list` says what can be fetched"
            raise UserError(_absent(path) + (below if path != pattern else ""))
        files += found
    return list(dict.fromkeys(files))


def _matches(pattern: str) -> list[str]:
    if remote.is_remote(pattern):
        try:
            filesystem, path = remote.fsspec().core.url_to_fs(pattern)
            return sorted(filesystem.unstrip_protocol(p) for p in filesystem.glob(path))
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"{pattern} cannot be listed: {error}") from None
    if not _has_wildcard(pattern):
        return [pattern] if os.path.isfile(pattern) else []
    import glob

    return sorted(glob.glob(pattern, recursive=True))


def _has_wildcard(path: str) -> bool:
    return any(c in path for c in "*?[")


def _absent(pattern: str) -> str:
    """That nothing matches, and what a look at its folder tells."""
    folder = os.path.dirname(pattern) or "."
    if remote.is_remote(pattern) or _has_wildcard(folder):
        return f"no file matches {pattern}."
    if not os.path.isdir(folder):
        return f"no file matches {pattern}: there is no folder {folder}."
    hint = near_misses(os.path.basename(pattern), sorted(os.listdir(folder)))
    return f"no file matches {pattern}.{hint}"


def format_of(path: str) -> str:
    """The format by ending, compression set aside: one of `FORMATS`."""
    name = path.removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz")
    ending = os.path.splitext(name)[1].lower()
    ending = {".json": ".jsonl", ".ndjson": ".jsonl", ".pq": ".parquet"}.get(ending, ending)
    if ending not in FORMATS:
        raise UserError(f"{path}: a file of this kind is not read; known are {', '.join(FORMATS)}")
    return ending


def read_chunks(
    path: str,
    columns: Sequence[str],
    *,
    strict: bool = True,
    encoding: str = "utf-8",
    report: Report | None = None,
    lenient: str = "set DATA_STRICT = False",
    lists: Sequence[str] = (),
) -> Iterator[Chunk]:
    """Reads `columns` of one file as lists of Python values, at most `CHUNK_ROWS` rows at a time.

    A plain text file has one column, whatever it is called, one document a line; where several columns
    are asked for, `.txt` is read as TSV (NSMC's files are called so).

    Args:
      path: local path or bucket address.
      columns: names of the columns wanted.
      strict: stop at what cannot be read rather than skip and count it.
      encoding: of text files; a byte order mark wins.
      report: counts are added here.
      lenient: what a person does to have such places left out, for the message; "" if nothing.
      lists: columns whose values may be lists of texts or numbers, where the format has lists.

    Raises:
      UserError: missing column, other encoding, unreadable file; in strict reading also a bad row.
    """
    report = Report() if report is None else report
    kind = format_of(path)
    if kind == ".txt" and len(columns) > 1:
        kind = ".tsv"
    if kind == ".parquet":
        from kcmoe.data import parquet

        yield from parquet.read_chunks(path, columns, strict, report, lenient, lists)
        return
    jsonl = functools.partial(_jsonl, lists=lists)
    readers: dict[str, _Reader] = {".txt": _lines, ".tsv": _tsv, ".csv": _csv, ".jsonl": jsonl}
    rows: list[list[Any]] = []
    try:
        with open_text(path, encoding) as file:
            for place, row in readers[kind](file, path, columns):
                if isinstance(row, BadRow):
                    if strict:
                        way = f"; mend it, or {lenient} to leave such places out" if lenient else ""
                        raise UserError(f"{path}, {place}: {row}{way}")
                    report.drop(str(row).partition(" (")[0], f"{path}, {place}")
                    continue
                rows.append(row)
                if len(rows) == CHUNK_ROWS:
                    report.rows += len(rows)
                    yield _chunk(rows, columns)
                    rows = []
    except UnicodeDecodeError as error:
        byte = f"{path} is not {encoding} text (byte {error.object[error.start]:#04x})."
        guess = "Set TASK_ENCODING (or --encoding) to its encoding"
        if _is_cp949(error, encoding):
            guess = (
                "It looks like CP949 (EUC-KR): set TASK_ENCODING = 'cp949' (or --encoding=cp949)"
            )
        raise UserError(f"{byte} {guess}") from None
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    report.rows += len(rows)
    if rows:
        yield _chunk(rows, columns)


def _chunk(rows: list[list[Any]], columns: Sequence[str]) -> Chunk:
    return {
        name: list(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)
    }


def _is_cp949(error: UnicodeDecodeError, tried: str) -> bool:
    name = codecs.lookup(tried).name
    if name == "cp949" or (name == "utf-8" and not error.object[: error.start].isascii()):
        return False  # good characters before the bad byte: UTF-8, but damaged
    # The decoder's buffer may end inside a character.
    text = error.object[:4096].decode("cp949", errors="ignore")
    hangul = sum("가" <= c <= "힣" for c in text)
    return hangul > len(text) * 0.2


def open_text(path: str, encoding: str) -> io.TextIOWrapper:
    """Opens a text file, decompressing by ending; lines end at \\n alone, never at other separators."""
    try:
        raw = remote.fsspec().open(path, "rb", compression="infer").open()
        start = raw.read(4)
        raw.seek(0)
    except (*_UNREADABLE, ValueError, ImportError) as error:
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


_Row = tuple[str, "list[Any] | BadRow"]
_Reader = Callable[[Iterable[str], str, Sequence[str]], Iterator[_Row]]


def _lines(file: Iterable[str], path: str, columns: Sequence[str]) -> Iterator[_Row]:
    del path, columns
    for number, line in enumerate(file, 1):
        yield f"line {number}", [line.rstrip("\r\n")]


def _positions(header: Sequence[str], path: str, columns: Sequence[str]) -> list[int]:
    missing = [name for name in columns if name not in header]
    if missing:
        hint = near_misses(missing[0], header)
        raise UserError(
            f"{path} has no column {missing[0]}.{hint} Its columns: {', '.join(header) or 'none'}"
        )
    return [list(header).index(name) for name in columns]


def _tsv(file: Iterable[str], path: str, columns: Sequence[str]) -> Iterator[_Row]:
    yield from _cells(
        ((i, x.rstrip("\r\n").split("\t")) for i, x in enumerate(file, 1)), path, columns
    )


def _csv(file: Iterable[str], path: str, columns: Sequence[str]) -> Iterator[_Row]:
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
) -> Iterator[_Row]:
    _, header = next(lines, (0, None))
    if header is None or not any(name.strip() for name in header):
        what = "is empty" if header is None else "has a blank first line"
        raise UserError(
            f"{path} {what}; leave it out, or give it a header that names {', '.join(columns)}"
        )
    positions = _positions([name.strip() for name in header], path, columns)
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


def _jsonl(
    file: Iterable[str], path: str, columns: Sequence[str], lists: Sequence[str]
) -> Iterator[_Row]:
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
            _positions(list(row), path, columns)  # the first row lacks it: a renamed column
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
