# SPDX-License-Identifier: Apache-2.0
"""Rows out of parquet, TSV, CSV, JSON lines and plain text, local or in a bucket, a chunk at a time.

`parquet` and `text_formats` know the formats. What cannot be read is named with file and place: strict
reading stops there, lenient reading skips and counts. Tasks are not known here.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from kcmoe.data import parquet, text_formats
from kcmoe.errors import UserError, near_misses
from kcmoe.io import remote, resources

CHUNK_ROWS = 4096
FORMATS = (".parquet", ".tsv", ".csv", ".jsonl", ".txt")

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
    tally: Tally | None = None,
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
      tally: counts are added here.
      lenient: what a person does to have such places left out, for the message; "" if nothing.
      lists: columns whose values may be lists of texts or numbers, where the format has lists.

    Raises:
      UserError: missing column, other encoding, unreadable file; in strict reading also a bad row.
    """
    tally = Tally() if tally is None else tally
    kind = format_of(path)
    if kind == ".txt" and len(columns) > 1:
        kind = ".tsv"
    if kind == ".parquet":
        yield from _parquet_chunks(path, columns, strict, tally, lenient, lists)
        return
    readers: dict[str, text_formats.Reader] = {
        ".txt": text_formats.lines,
        ".tsv": text_formats.tsv,
        ".csv": text_formats.csv_rows,
        ".jsonl": functools.partial(text_formats.jsonl, lists=lists),
    }
    rows: list[list[Any]] = []
    try:
        with text_formats.open_text(path, encoding) as file:
            for place, row in readers[kind](file, path, columns):
                if isinstance(row, text_formats.BadRow):
                    if strict:
                        way = f"; mend it, or {lenient} to leave such places out" if lenient else ""
                        raise UserError(f"{path}, {place}: {row}{way}")
                    tally.drop(str(row).partition(" (")[0], f"{path}, {place}")
                    continue
                rows.append(row)
                if len(rows) == CHUNK_ROWS:
                    tally.rows += len(rows)
                    yield _chunk(rows, columns)
                    rows = []
    except UnicodeDecodeError as error:
        byte = f"{path} is not {encoding} text (byte {error.object[error.start]:#04x})."
        guess = "Set TASK_ENCODING (or --encoding) to its encoding"
        if text_formats.looks_like_cp949(error, encoding):
            guess = (
                "It looks like CP949 (EUC-KR): set TASK_ENCODING = 'cp949' (or --encoding=cp949)"
            )
        raise UserError(f"{byte} {guess}") from None
    except text_formats.UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    tally.rows += len(rows)
    if rows:
        yield _chunk(rows, columns)


def _parquet_chunks(
    path: str,
    columns: Sequence[str],
    strict: bool,
    tally: Tally,
    lenient: str,
    lists: Sequence[str],
) -> Iterator[Chunk]:
    with parquet.open_file(path) as file:
        text_formats.column_places(file.schema_arrow.names, path, columns)
        parquet.check_types(file, path, columns, lists)
        for group in range(file.metadata.num_row_groups):
            rows = 0
            try:
                for chunk in parquet.read_group(file, group, columns, CHUNK_ROWS):
                    read = len(chunk[columns[0]])
                    rows += read
                    tally.rows += read
                    yield chunk
            except parquet.Damaged as error:
                place = f"{path}, row group {group}"
                if strict:
                    way = f", or {lenient} to leave such row groups out" if lenient else ""
                    raise UserError(
                        f"{place} is damaged ({error}); fetch the file again{way}"
                    ) from None
                tally.drop("damaged row group", place, max(error.expected_rows - rows, 0))


def _chunk(rows: list[list[Any]], columns: Sequence[str]) -> Chunk:
    return {
        name: list(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)
    }
