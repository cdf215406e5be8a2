# SPDX-License-Identifier: Apache-2.0
"""Writes whole rows again, with further columns behind them: CSV, TSV, plain text, JSON lines, parquet.

UTF-8 whatever the input was. Names and bytes are this file's; when a file gets its final name is its
caller's business.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TextIO

from kcmoe.data import formats, plain_values
from kcmoe.data.parquet import ROW_GROUP_ROWS
from kcmoe.data.whole import WholeChunk, WholeFile
from kcmoe.errors import UserError
from kcmoe.io.wording import first_line

WRITTEN = (".csv", ".tsv", ".txt", ".jsonl", ".parquet")
_GROUP_BYTES = 128 << 20  # a row group ends here even if it has fewer rows
_FLAT = str.maketrans({"\t": " ", "\n": " ", "\r": " "})

Columns = Mapping[str, Sequence[Any]]


class TableWriter(Protocol):
    """A file that is being written."""

    flattened: int

    def write(self, chunk: WholeChunk, more: Columns) -> None:
        """Appends the rows of `chunk`, each with its values in `more`."""

    def close(self) -> None:
        """Ends the file."""


def kind_of(path: str) -> str:
    """The format that a name asks for, one of `WRITTEN`; `UserError` for another one."""
    kind = "" if formats.packing_of(path) else os.path.splitext(path)[1].lower()
    kind = {".json": ".jsonl", ".ndjson": ".jsonl", ".pq": ".parquet"}.get(kind, kind)
    if kind not in WRITTEN:
        raise UserError(
            f"{path}: the ending says what is written, and this is none of {', '.join(WRITTEN)}"
        )
    return kind


def writer(
    partial: str,
    kind: str,
    of: WholeFile,
    names: Sequence[str],
    more: Mapping[str, str],
    kinds: Mapping[str, Any],
    nested: Mapping[str, tuple[str, str]],
) -> TableWriter:
    """Begins a file.

    Args:
      partial: where to write.
      kind: one of `WRITTEN`.
      of: the file that the rows come from.
      names: its columns, all that occur.
      more: the further columns, "text" or "number" each.
      kinds: PyArrow types of the columns of a JSON file, for parquet; see `ColumnKinds`.
      nested: further columns that JSON has in an object -> its name, and theirs in it.
    """
    if kind == ".parquet":
        return _Parquet(partial, of, names, more, kinds)
    if kind == ".jsonl":
        return _JsonLines(partial, nested)
    # Where quotes are text, as in what was read, they stay it: kornli's pairs are published so.
    raw = kind == ".txt" or (kind == ".tsv" and of.kind in (".tsv", ".txt") and not of.quoted)
    # Excel takes a CSV file without a mark for CP949, and files that are not plain UTF-8 come from Excel.
    marked = kind == ".csv" and of.encoding not in ("utf-8", "")
    return _Separated(partial, "," if kind == ".csv" else "\t", [*names, *more], raw, marked)


class _JsonLines:
    flattened = 0

    def __init__(self, path: str, nested: Mapping[str, tuple[str, str]]):
        self._file = open(path, "w", encoding="utf-8", newline="\n")  # noqa: SIM115
        self._nested = nested

    def write(self, chunk: WholeChunk, more: Columns) -> None:
        for record, values in zip(chunk.records(), zip(*more.values(), strict=True), strict=True):
            row = dict(record)
            for name, value in zip(more, values, strict=True):
                within, key = self._nested.get(name, ("", ""))
                if not within:
                    row[name] = value
                elif value is None:
                    row[within] = None
                else:
                    row.setdefault(within, {})[key] = value
            self._file.write(f"{_json(row)}\n")

    def close(self) -> None:
        self._file.close()


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=cell)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, default=cell)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return [_without_nan(each) for each in value] if isinstance(value, list) else value


def cell(value: Any) -> str:
    """A value as the text of a cell; "" for a missing one, JSON for lists and objects."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return _json(value) if isinstance(value, list | dict) else str(value)


class _Lines:
    """Ends rows with a line feed alone; `csv` ends them with a carriage return, too, to quote it in cells."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(f"{row[:-2]}\n")


class _Separated:
    def __init__(self, path: str, separator: str, names: Sequence[str], raw: bool, marked: bool):
        encoding = "utf-8-sig" if marked else "utf-8"
        self._file = open(path, "w", encoding=encoding, newline="")  # noqa: SIM115
        self._names, self._raw = names, raw
        self._csv = csv.writer(_Lines(self._file), delimiter=separator, lineterminator="\r\n")
        self.flattened = 0
        self._row(names)

    def write(self, chunk: WholeChunk, more: Columns) -> None:
        if chunk.cells:
            for row in zip(*chunk.cells.values(), *more.values(), strict=True):
                self._row([cell(value) for value in row])
            return
        kept = self._names[: len(self._names) - len(more)]
        for record, values in zip(chunk.records(), zip(*more.values(), strict=True), strict=True):
            self._row([cell(value) for value in (*(record.get(name) for name in kept), *values)])

    def _row(self, cells: Sequence[str]) -> None:
        if not self._raw:
            self._csv.writerow(cells)
            return
        line = "\t".join(cells)
        if line.count("\t") >= len(cells) or "\n" in line or "\r" in line:
            flat = [each.translate(_FLAT) for each in cells]
            self.flattened += flat != list(cells)
            line = "\t".join(flat)
        self._file.write(f"{line}\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    flattened = 0

    def __init__(
        self,
        path: str,
        of: WholeFile,
        names: Sequence[str],
        more: Mapping[str, str],
        kinds: Mapping[str, Any],
    ):
        import pyarrow as pa
        import pyarrow.parquet as pq

        if of.schema is not None:
            fields = [field.with_type(_held(field)) for field in of.schema.remove_metadata()]
        else:
            fields = [pa.field(name, kinds.get(name, pa.string())) for name in names]
        answers = {"text": pa.string(), "number": pa.float64()}
        fields += [pa.field(name, answers[kind]) for name, kind in more.items()]
        self._schema = pa.schema(fields)
        self._waiting: list[Any] = []
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="zstd", write_page_checksum=True
        )

    def write(self, chunk: WholeChunk, more: Columns) -> None:
        import pyarrow as pa

        fields = [self._schema.field(i) for i in range(len(self._schema) - len(more))]
        if chunk.batch is not None:
            kept = [_as(c, f.type) for c, f in zip(chunk.batch.columns, fields, strict=True)]
        else:
            if chunk.cells:
                values: list[Any] = list(chunk.cells.values())
            else:
                values = [[row.get(f.name) for row in chunk.objects] for f in fields]
            kept = [array(column, f.type) for column, f in zip(values, fields, strict=True)]
        found = [pa.array(v, self._schema.field(name).type) for name, v in more.items()]
        self._waiting.append(pa.Table.from_arrays([*kept, *found], schema=self._schema))
        rows = sum(table.num_rows for table in self._waiting)
        size = sum(table.nbytes for table in self._waiting)
        if rows >= ROW_GROUP_ROWS or size >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            table = pa.concat_tables(self._waiting)
            self._waiting = []
            try:
                self._writer.write_table(table, row_group_size=table.num_rows or None)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise UserError(
                    f"parquet cannot hold what a column has ({first_line(error)}); name an output that "
                    "ends in .jsonl or .csv"
                ) from None

    def close(self) -> None:
        self._flush()
        self._writer.close()


def _held(field: Any) -> Any:
    """The type with which parquet holds a column: its own, that of its runs, or else text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = field.type.value_type if pa.types.is_run_end_encoded(field.type) else field.type
    try:
        pq.write_table(pa.schema([field.with_type(kind)]).empty_table(), io.BytesIO())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return pa.string()
    return kind


def _as(column: Any, kind: Any) -> Any:
    """A PyArrow array in the type that `_held` found for it."""
    import pyarrow as pa

    if column.type == kind:
        return column
    if pa.types.is_run_end_encoded(column.type) and column.type.value_type == kind:
        return plain_values.decoded(column)
    return array(plain_values.values(column), kind)


def array(values: Sequence[Any], kind: Any) -> Any:
    """Python values as a PyArrow array; as text, they are what a cell has."""
    import pyarrow as pa

    if pa.types.is_string(kind):
        return pa.array([None if v is None or v != v else cell(v) for v in values], kind)
    return pa.array(values, kind)


class ColumnKinds:
    """The columns of a JSON file and their PyArrow types, found while its rows go by."""

    def __init__(self, typed: bool):
        self._typed = typed
        self.kinds: dict[str, Any] = {}

    def add(self, objects: Sequence[Mapping[str, Any]]) -> None:
        """Takes some rows into account."""
        import pyarrow as pa

        names = dict.fromkeys(name for row in objects for name in row)
        for name in names:
            known = self.kinds.get(name, pa.null())
            if self._typed and not (name in self.kinds and pa.types.is_string(known)):
                known = _unified(pa, known, [row.get(name) for row in objects])
            self.kinds[name] = known

    def found(self) -> dict[str, Any]:
        """Name -> type, in the order in which they occur; text where values are of several kinds."""
        import pyarrow as pa

        return {k: pa.string() if pa.types.is_null(v) else v for k, v in self.kinds.items()}


def _unified(pa: Any, known: Any, values: Sequence[Any]) -> Any:
    try:
        here = pa.array(values).type
        fields = [pa.schema([pa.field("x", kind)]) for kind in (known, here)]
        return pa.unify_schemas(fields, promote_options="permissive").field("x").type
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return pa.string()
