# SPDX-License-Identifier: Apache-2.0
"""Columns of Arrow tables as Python values, and Arrow files: Feather, IPC, what `datasets` saves.

Parquet becomes Arrow as it is read, so that what counts as a text, a number or missing stands here for both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from kcmoe.data.text_formats import column_places
from kcmoe.errors import UserError
from kcmoe.io import remote
from kcmoe.io.wording import first_line


@dataclasses.dataclass(frozen=True)
class Damaged:
    """A part of a file that does not decode.

    Attributes:
      reason: why.
      kind: "row group" or "record batch".
      number: which, from 0.
      rows: how many are lost.
    """

    reason: str
    kind: str
    number: int
    rows: int

    def __str__(self) -> str:
        return self.reason

    @property
    def place(self) -> str:
        """What to call it."""
        return f"{self.kind} {self.number}"


@dataclasses.dataclass(frozen=True)
class AskedColumn:
    """One column that is asked for.

    Attributes:
      name: as asked for.
      path: its name in the file, and the names of fields inside.
      kind: its PyArrow type.
    """

    name: str
    path: tuple[str, ...]
    kind: Any


def fields(
    schema: Any, path: str, columns: Sequence[str], lists: Sequence[str]
) -> list[AskedColumn]:
    """Finds `columns` in a PyArrow schema.

    Args:
      schema: of the file.
      path: its name, for the message.
      columns: names; "a.b" is b of the struct a, unless a column is called so.
      lists: those among them that may also hold lists of texts or numbers.

    Raises:
      UserError: for a column that is missing or holds neither texts nor numbers.
    """
    found = []
    for name in columns:
        keys: tuple[str, ...] = (name,)
        if name not in schema.names and name.partition(".")[0] in schema.names:
            keys = tuple(name.split("."))
        place = column_places(schema.names, path, keys[:1])[0]
        field = schema.field(place)
        names = [field.name]
        for key in keys[1:]:
            inner = [field.type.field(i) for i in range(field.type.num_fields)]
            field = inner[
                column_places([each.name for each in inner], f"{path}: {names[0]}", [key])[0]
            ]
            names.append(field.name)
        _check(field.type, path, name, name in lists)
        found.append(AskedColumn(name, tuple(names), field.type))
    return found


def _check(given: Any, path: str, name: str, list_allowed: bool) -> None:
    import pyarrow as pa

    kind, known = given, pa.types
    if list_allowed and (known.is_list(kind) or known.is_large_list(kind)):
        kind = kind.value_type
    if known.is_dictionary(kind) or known.is_run_end_encoded(kind):
        kind = kind.value_type
    plain = (
        known.is_string(kind)
        or known.is_large_string(kind)
        or known.is_string_view(kind)
        or known.is_integer(kind)
        or known.is_floating(kind)
        or known.is_decimal(kind)
        or known.is_boolean(kind)
        or known.is_null(kind)
    )
    if not plain:
        raise UserError(f"{path}: column {name} is {given}, but text or numbers are needed")


def values(batch: Any, asked: Sequence[AskedColumn]) -> dict[str, list[Any]]:
    """The columns of a record batch as lists of Python values; NaN is None, as null is."""
    import pyarrow.compute as pc

    found = {}
    for field in asked:
        column = batch.column(batch.schema.get_field_index(field.path[0]))
        for name in field.path[1:]:
            column = pc.struct_field(column, name)
        found[field.name] = _plain(column)
    return found


def _plain(column: Any) -> list[Any]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_run_end_encoded(column.type):
        return _plain(pc.run_end_decode(column))
    if pa.types.is_dictionary(column.type):
        return _plain(column.dictionary_decode())
    if pa.types.is_decimal(column.type):
        number = int if column.type.scale <= 0 else float
        return [None if cell is None else number(cell) for cell in column.to_pylist()]
    if not pa.types.is_floating(column.type):
        cells: list[Any] = column.to_pylist()
        return cells
    if pa.types.is_float64(column.type):
        return [None if cell != cell else cell for cell in column.to_pylist()]
    # A float32 of 0.1 is 0.1, as a text file has it, not 0.10000000149011612.
    numbers = column.to_numpy(zero_copy_only=False)
    return [None if cell != cell else float(str(cell)) for cell in numbers]


def chunks(
    path: str, columns: Sequence[str], size: int, lists: Sequence[str]
) -> Iterator[dict[str, list[Any]] | Damaged]:
    """Yields `columns` of an Arrow file, at most `size` rows at a time; see `parquet.chunks`.

    Raises:
      UserError: if it is no Arrow file, or as `fields` does.
    """
    for found in whole(path, columns, size, lists):
        yield found if isinstance(found, Damaged) else found[0]


def whole(
    path: str, columns: Sequence[str], size: int, lists: Sequence[str] = ()
) -> Iterator[tuple[dict[str, list[Any]], Any] | Damaged]:
    """As `chunks`, but each with the record batch of all columns that it comes from."""
    import pyarrow as pa

    asked: list[AskedColumn] = []
    number = 0
    try:
        with remote.open_binary(path) as raw:
            reader = _reader(pa, raw)
            asked = fields(reader.schema, path, columns, lists)
            for batch in _batches(reader):
                batch.validate(full=True)
                for start in range(0, batch.num_rows, size):
                    part = batch.slice(start, size)
                    yield values(part, asked), part
                number += 1
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except UserError:
        raise
    except (OSError, pa.ArrowException, ValueError, OverflowError, MemoryError) as error:
        if not asked:
            raise UserError(f"{path} is not a readable Arrow file: {first_line(error)}") from None
        yield Damaged(first_line(error), "record batch", number, 0)


def schema_of(path: str) -> Any:
    """The PyArrow schema of an Arrow file; `UserError` if it is none."""
    import pyarrow as pa

    try:
        with remote.fsspec().open(path, "rb").open() as raw:
            return _reader(pa, raw).schema
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"{path} is not a readable Arrow file: {first_line(error)}") from None


def _reader(pa: Any, raw: Any) -> Any:
    """A reader of the file format, or of the stream format, which has no footer."""
    start = raw.read(6)
    raw.seek(0)
    if start[:4] == b"FEA1":
        raise ValueError("it is Feather of version 1; write it again with version 2")
    if start == b"ARROW1":
        return pa.ipc.open_file(pa.PythonFile(raw, "r"))
    return pa.ipc.open_stream(pa.PythonFile(raw, "r"))


def _batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        return
    yield from reader
