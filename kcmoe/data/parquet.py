# SPDX-License-Identifier: Apache-2.0
"""Reads and writes parquet by row group.

Shards written here carry page checksums, so that a flipped bit is found rather than trained on. PyArrow
does the format.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kcmoe.data import arrow
from kcmoe.errors import UserError
from kcmoe.io import durable, remote
from kcmoe.io.wording import first_line

ROW_GROUP_ROWS = 20_000
_WHOLE_BYTES = 16 << 20  # about as much of whole rows is decoded at once


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
            source = remote.open_binary(path)
        else:
            remote.refuse_devices(path)
        return pq.ParquetFile(source, page_checksum_verification=True)
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, pa.ArrowException, ValueError, ImportError) as error:
        raise UserError(f"{path} is not a readable parquet file: {first_line(error)}") from None


def chunks(
    path: str, columns: Sequence[str], size: int, lists: Sequence[str]
) -> Iterator[dict[str, list[Any]] | arrow.Damaged]:
    """Yields `columns` as lists of Python values, at most `size` rows at a time, and what is damaged.

    Raises:
      UserError: if the file or a column is missing, or a column holds neither texts nor numbers.
    """
    with open_file(path) as file:
        fields = arrow.fields(file.schema_arrow, path, columns, lists)
        names = list(dict.fromkeys(field.path[0] for field in fields))
        for group in range(file.metadata.num_row_groups):
            yield from _group(file, group, names, size, lambda batch: arrow.values(batch, fields))


def whole(
    path: str, columns: Sequence[str], size: int
) -> Iterator[tuple[dict[str, list[Any]], Any] | arrow.Damaged]:
    """As `chunks`, but each with the record batch of all columns that it comes from."""
    with open_file(path) as file:
        fields = arrow.fields(file.schema_arrow, path, columns, ())
        for group in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(group)
            rows = _WHOLE_BYTES * about.num_rows // max(about.total_byte_size, 1)
            yield from _group(
                file, group, None, max(1, min(size, rows)), lambda b: (arrow.values(b, fields), b)
            )


def _group(
    file: Any,
    group: int,
    columns: list[str] | None,
    size: int,
    convert: Callable[[Any], Any],
) -> Iterator[Any]:
    import pyarrow as pa

    expected = file.metadata.row_group(group).num_rows
    rows = 0
    try:
        batches = file.iter_batches(
            batch_size=size, row_groups=[group], columns=columns, use_threads=False
        )
        for batch in batches:
            # A damaged string column can decode to bytes that are not UTF-8.
            batch.validate(full=True)
            rows += batch.num_rows
            yield convert(batch)
        if rows != expected:
            raise pa.ArrowInvalid(f"{rows} rows where the footer says {expected}")
    except (OSError, pa.ArrowException, ValueError, OverflowError, MemoryError) as error:
        yield arrow.Damaged(first_line(error), "row group", group, max(expected - rows, 0))


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
        """Finishes the file and gives it its name once it is on the disk."""
        self._writer.close()
        durable.finish_file(Path(self._partial), Path(self.path))

    def abandon(self) -> None:
        """Removes what was written."""
        with contextlib.suppress(
            OSError
        ):  # closing writes, which fails again where the disk is full
            self._writer.close()
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._partial)
