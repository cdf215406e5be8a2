# SPDX-License-Identifier: Apache-2.0
"""Zarr arrays through TensorStore: checking and reading them, and chunk shapes for writing.

Zarr reads a chunk that is not there as zeros without a word, and nothing in it notices a header
that was changed; so every chunk is looked for by name, and every header is checked against what the
checkpoint's index says, before a value is believed. Knows nothing of trees or steps.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Container
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from kcmoe.checkpoint.leaves import ShapeDtype, checked_shape, zarr_dtype
from kcmoe.checkpoint.storage import Damaged
from kcmoe.io.wording import first_line

CHUNK_BYTES = 16 << 20
"""Chunks are at most this large, so that two cores share the compression of a large array."""

WRITING = {"file_io_sync": False}
"""Context for writing: files are synced all together when the folder is complete, see `durable`."""


class Header(NamedTuple):
    """What `.zarray` says of an array."""

    leaf: ShapeDtype
    chunks: tuple[int, ...]
    separator: str


def parse_header(content: bytes, where: str) -> Header:
    """Returns the checked content of a `.zarray`. Raises `Damaged` if it is not a plain array."""
    try:
        fields = json.loads(content)
        shape, chunks = checked_shape(fields["shape"]), checked_shape(fields["chunks"])
        header = Header(
            ShapeDtype(shape, zarr_dtype(fields["dtype"])),
            chunks,
            fields.get("dimension_separator", "."),
        )
        plain = fields["zarr_format"] == 2 and fields["order"] == "C" and not fields.get("filters")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{where}/.zarray is damaged ({first_line(error)})") from error
    if not plain or len(chunks) != len(shape) or 0 in chunks or header.separator not in (".", "/"):
        raise Damaged(f"{where}/.zarray is damaged (not an array as T5X writes it)")
    return header


def missing_chunks(header: Header, folder: str, names: Container[str]) -> list[str]:
    """Returns the names of the chunks of an array in `folder` that are not among `names`."""
    counts = [
        -(-size // chunk) for size, chunk in zip(header.leaf.shape, header.chunks, strict=True)
    ]
    return [
        name
        for index in itertools.product(*map(range, counts))
        if (name := f"{folder}/{header.separator.join(map(str, index)) or '0'}") not in names
    ]


def read_array(kvstore: dict[str, Any], context: ts.Context, driver: str = "zarr") -> np.ndarray:
    """Reads a whole array. Raises `Damaged` if a chunk cannot be read or decoded."""
    try:
        spec = {"driver": driver, "kvstore": kvstore}
        store = ts.open(spec, open=True, read=True, context=context).result()
        return np.asarray(store.read(order="C").result())
    except (ValueError, RuntimeError, TypeError, NotImplementedError, OverflowError) as error:
        raise Damaged(f"cannot be read: {first_line(error)}") from error


def chunk_shape(leaf: ShapeDtype) -> tuple[int, ...]:
    """Returns the largest chunk of at most `CHUNK_BYTES` that divides the array evenly.

    The first axes are divided first, so that a chunk is one piece of the array in memory.
    """
    chunks = list(leaf.shape)
    for axis, size in enumerate(leaf.shape):
        rest = int(np.prod(chunks[axis + 1 :], dtype=np.int64)) * leaf.dtype.itemsize
        fitting = (n for n in range(size, 0, -1) if size % n == 0 and n * rest <= CHUNK_BYTES)
        chunks[axis] = next(fitting, 1 if size else 0)
        if chunks[axis] * rest <= CHUNK_BYTES:
            break
    return tuple(max(chunk, 1) for chunk in chunks)
