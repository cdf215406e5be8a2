# SPDX-License-Identifier: Apache-2.0
"""Rows out of parquet, Arrow, TSV, CSV, JSON and plain text, local or in a bucket, a chunk at a time.

`formats` knows the endings, `arrow`, `text_formats` and `json_rows` what is inside. What cannot be read is
named with file and place: strict reading stops there, lenient reading skips and counts. Tasks are not known
here.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from kcmoe.data import arrow, encodings, formats, json_rows, parquet, text_formats
from kcmoe.data.formats import format_of
from kcmoe.errors import UserError
from kcmoe.io import given, remote, resources

__all__ = [
    "CHUNK_ROWS",
    "PLAIN_COLUMN",
    "Chunk",
    "Tally",
    "Ways",
    "expand",
    "format_of",
    "read_chunks",
]

CHUNK_ROWS = 4096
PLAIN_COLUMN = "text"  # what the one column of a plain text file is called

Chunk = dict[str, list[Any]]


@dataclasses.dataclass
class Tally:
    """Counts what reading met: rows, nulls and, by reason, rows left out; `places` names the first few."""

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


def expand(patterns: Sequence[str], data_dir: str | os.PathLike[str] = "") -> list[str]:
    """The files that `patterns` name, in order, each pattern's matches sorted.

    Args:
      patterns: paths, patterns or folders, see `given.files`; relative ones are below `data_dir`;
        "samples:x" is shipped.
      data_dir: local folder or bucket address.

    Raises:
      UserError: if a pattern matches no file.
    """
    files: list[str] = []
    for pattern in patterns:
        shipped = pattern.startswith("samples:")
        if shipped:
            pattern = f"{resources.find('kcmoe/samples')}/{pattern[8:]}"
        found = given.files(pattern, "" if shipped else data_dir)
        if not found:
            below = " Is DATA_DIR right? `kcmoe data list` says what can be fetched"
            whole = remote.is_remote(pattern) or os.path.isabs(given.path(pattern)) or not data_dir
            raise UserError(given.absent(pattern, data_dir) + ("" if whole else below))
        for path in found:
            files += formats.in_folder(path) if formats.is_folder(path) else [path]
    return list(dict.fromkeys(files))


@dataclasses.dataclass(frozen=True)
class Ways:
    """What a person does about a file that cannot be read as it is, for messages; "" if nothing.

    Attributes:
      lenient: to have places that cannot be read left out.
      recode: to say that the encoding is {0}, of the file {1} alone.
    """

    lenient: str = "set DATA_STRICT = False"
    recode: str = "set TASK_ENCODING = '{0}' (for this file alone '{1}={0}')"


TASK_WAYS = Ways()


def read_chunks(
    path: str,
    columns: Sequence[str],
    *,
    strict: bool = True,
    encoding: str = "utf-8",
    tally: Tally | None = None,
    ways: Ways = TASK_WAYS,
    lists: Sequence[str] = (),
    quotes: bool = True,
    characters: int = 0,
) -> Iterator[Chunk]:
    """Reads `columns` of one file as lists of Python values, at most `CHUNK_ROWS` rows at a time.

    A missing value (null, NaN) is None, whatever the format. A file `.txt` with one of the columns in its
    first line, or of which several are asked for, is read as TSV (NSMC's files are called so); any other has
    one column, "text", one document a line.

    Args:
      path: local path or bucket address.
      columns: names of the columns wanted, compared composed.
      strict: stop at what cannot be read rather than skip and count it.
      encoding: of text files, see `given.encoding`; a byte order mark wins.
      tally: counts are added here.
      ways: what a person does about a file that cannot be read.
      lists: columns whose values may be lists of texts or numbers, where the format has lists.
      quotes: whether a TSV file may have the quotes of pandas; else they are text, as in `.txt`.
      characters: a chunk of a text file ends here even if it has fewer rows; 0 for no such bound. For
        columns of texts alone.

    Raises:
      UserError: missing column, other encoding, unreadable file; in strict reading also a bad row.
    """
    tally = Tally() if tally is None else tally
    kind = format_of(path)
    if kind in (".parquet", ".arrow"):
        read = parquet.chunks if kind == ".parquet" else arrow.chunks
        yield from _arrow_chunks(read(path, columns, CHUNK_ROWS, lists), path, strict, tally, ways)
        return
    readers: dict[str, text_formats.Reader] = {
        ".txt": text_formats.lines,
        ".tsv": functools.partial(text_formats.tsv, quotes=quotes and format_of(path) == ".tsv"),
        ".csv": text_formats.csv_rows,
        ".jsonl": functools.partial(json_rows.jsonl, lists=lists),
    }
    rows: list[list[Any]] = []
    held = 0
    try:
        if kind == ".txt":
            kind = _kind_of_text(path, columns, encoding)
        with encodings.open_text(path, encoding) as file:
            for place, row in readers[kind](file, path, columns):
                if isinstance(row, encodings.BadRow):
                    bad_row(row, path, place, file.encoding, strict, tally, ways)
                    continue
                rows.append(row)
                if characters:
                    held += sum(map(len, row))
                if len(rows) == CHUNK_ROWS or held > characters:
                    tally.rows += len(rows)
                    yield _chunk(rows, columns)
                    rows, held = [], 0
    except UnicodeError as error:
        raise encodings.not_text(path, encoding, error, ways.recode) from None
    except formats.UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    tally.rows += len(rows)
    if rows:
        yield _chunk(rows, columns)


def _kind_of_text(path: str, columns: Sequence[str], encoding: str) -> str:
    """Whether a file .txt is a table with tabs or lines of text.

    Raises:
      UserError: if a column is named that it does not have.
    """
    if len(columns) > 1:
        return ".tsv"
    header = text_formats.first_cells(path, encoding)
    asked = given.composed(columns[0])
    if asked in header and (len(header) > 1 or asked != PLAIN_COLUMN):
        return ".tsv"
    if asked == PLAIN_COLUMN:
        return ".txt"
    if len(header) > 1:
        raise UserError(
            f"{path} has no column {columns[0]}: its first line names {', '.join(header[:20])}"
        )
    raise UserError(
        f"{path} has no column {columns[0]}: it is plain lines, whose one column is called {PLAIN_COLUMN}"
    )


def bad_row(
    row: encodings.BadRow,
    path: str,
    place: str,
    encoding: str,
    strict: bool,
    tally: Tally,
    ways: Ways,
) -> None:
    """Counts a row that cannot be read; raises `UserError` in strict reading, or for another encoding."""
    encoding = encoding.removesuffix("-sig")
    what, mend = str(row), "mend it"
    if isinstance(row, encodings.BadByte):
        what = f"byte {row} is not {encoding} text"
        if not any("encoding" in each for each in tally.dropped):
            likely = encodings.likely_encoding(path, encoding)
            if likely:
                said = (
                    f"; {ways.recode.format(likely, os.path.basename(path))}" if ways.recode else ""
                )
                raise UserError(
                    f"{path} is not {encoding} text (byte {row}, {place}). It looks like "
                    f"{encodings.spelled(likely)}{said}"
                )
        if ways.recode:
            recode = ways.recode.format("…", os.path.basename(path))
            mend += f", {recode} if all of the file is in another encoding"
        if formats.packing_of(path):
            mend += ", fetch it again if it is damaged"
    if strict:
        way = f"; {mend}, or {ways.lenient} to leave such places out" if ways.lenient else ""
        raise UserError(f"{path}, {place}: {what}{way}")
    reason = "not in the encoding" if isinstance(row, encodings.BadByte) else what
    tally.drop(reason.partition(" (")[0], f"{path}, {place}")


def damaged_part(part: arrow.Damaged, path: str, strict: bool, tally: Tally, ways: Ways) -> None:
    """Counts a part of a file that does not decode; raises `UserError` in strict reading."""
    place = f"{path}, {part.place}"
    if strict:
        way = f", or {ways.lenient} to leave such {part.kind}s out" if ways.lenient else ""
        raise UserError(f"{place} is damaged ({part}); fetch the file again{way}")
    tally.drop(f"damaged {part.kind}", place, part.rows)


def _arrow_chunks(
    chunks: Iterator[Chunk | arrow.Damaged], path: str, strict: bool, tally: Tally, ways: Ways
) -> Iterator[Chunk]:
    for chunk in chunks:
        if isinstance(chunk, arrow.Damaged):
            damaged_part(chunk, path, strict, tally, ways)
            continue
        tally.rows += len(next(iter(chunk.values())))
        yield chunk


def _chunk(rows: list[list[Any]], columns: Sequence[str]) -> Chunk:
    return {
        name: list(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)
    }
