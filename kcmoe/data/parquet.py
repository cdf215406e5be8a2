# SPDX-License-Identifier: Apache-2.0
"""Reads and writes parquet by row group.

Shards written here carry page checksums, so that a flipped bit is found rather than trained on. PyArrow
does the format.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from kcmoe.errors import UserError
from kcmoe.io import remote

ROW_GROUP_ROWS = 20_000


def open_file(path: str) -> Any:
    """Opens a parquet file, reading no more than its footer.

    Returns:
      A `pyarrow.parquet.ParquetFile`.

    Raises:
      UserError: if it is missing or its footer is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source: Any = path
        if remote.is_remote(path):
            source = remote.fsspec().open(path, "rb").open()
        return pq.ParquetFile(source, page_checksum_verification=True)
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, pa.ArrowException, ValueError, ImportError) as error:
        raise UserError(f"{path} is not a readable parquet file: {one_line(error)}") from None


class Damaged(Exception):
    """A row group that does not decode; `expected_rows` is what the footer says it holds."""

    def __init__(self, reason: str, expected_rows: int):
        super().__init__(reason)
        self.expected_rows = expected_rows


def read_group(
    file: Any, group: int, columns: Sequence[str], batch_rows: int
) -> Iterator[dict[str, list[Any]]]:
    """Yields `columns` of one row group as lists of Python values, at most `batch_rows` at a time.

    Raises:
      Damaged: once it is found that the group cannot be decoded, perhaps after some batches.
    """
    import pyarrow as pa

    expected = file.metadata.row_group(group).num_rows
    rows = 0
    try:
        batches = file.iter_batches(
            batch_size=batch_rows, row_groups=[group], columns=list(columns), use_threads=False
        )
        for batch in batches:
            # A damaged string column can decode to bytes that are not UTF-8.
            batch.validate(full=True)
            rows += batch.num_rows
            yield {name: batch.column(name).to_pylist() for name in columns}
        if rows != expected:
            raise pa.ArrowInvalid(f"{rows} rows where the footer says {expected}")
    except (OSError, pa.ArrowException, ValueError, OverflowError, MemoryError) as error:
        raise Damaged(one_line(error), expected) from None


def check_types(file: Any, path: str, columns: Sequence[str], lists: Sequence[str]) -> None:
    """Raises `UserError` for a column that holds neither texts nor numbers.

    Args:
      file: from `open_file`.
      path: its name, for the message.
      columns: names of columns that are there.
      lists: those among them that may also hold lists of texts or numbers.
    """
    import pyarrow as pa

    for name in columns:
        given = kind = file.schema_arrow.field(name).type
        if name in lists and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            kind = kind.value_type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        plain = (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_string_view(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_null(kind)
        )
        if not plain:
            raise UserError(f"{path}: column {name} is {given}, but text or numbers are needed")


class Writer:
    """Writes one zstd parquet shard atomically: a half-written file never has the final name."""

    def __init__(self, path: str | os.PathLike[str], schema: Any):
        import pyarrow.parquet as pq

        self.path = os.fspath(path)
        self.rows = 0
        self._partial = f"{self.path}.{os.getpid()}.part"
        self._writer = pq.ParquetWriter(
            self._partial, schema, compression="zstd", write_page_checksum=True
        )

    def write(self, table: Any) -> None:
        """Appends a table, as row groups of at most `ROW_GROUP_ROWS`."""
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self.rows += table.num_rows

    def close(self) -> None:
        """Finishes the file and gives it its name."""
        self._writer.close()
        os.replace(self._partial, self.path)

    def abandon(self) -> None:
        """Removes what was written."""
        with contextlib.suppress(OSError):  # the full disk that is the reason, once more
            self._writer.close()
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._partial)


def one_line(error: BaseException) -> str:
    """The first line of an error's text, short enough for a message."""
    return " ".join(str(error).split())[:160] or type(error).__name__
