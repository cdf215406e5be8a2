# SPDX-License-Identifier: Apache-2.0
"""How T5X's checkpoints encode things: names of dtypes, zarr arrays, and Flax's msgpack files.

Zarr reads a missing chunk as zeros without an error, and nothing in it notices a header that was
changed. So every chunk is looked for by name, and every header is compared with the checkpoint's
index and with the sizes of the files, before a value is used or memory is asked for. A msgpack file
holds nested maps, text, numbers and arrays (Flax's extension type 1: shape, dtype name, bytes; source:
flax `serialization.py`); only these are decoded, and nothing in a file can name a type to build. This
file knows no trees and no steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import msgpack
import numpy as np

from kcmoe.checkpoint.storage import Damaged, reason
from kcmoe.io import json_text
from kcmoe.io.wording import first_line, human_bytes, shortened
from kcmoe.tree import ShapeDtype

if TYPE_CHECKING:
    import tensorstore as ts

CHUNK_BYTES = 16 << 20
"""Chunks are at most this large, so that two cores share the compression of a large array."""

WRITING = {"file_io_sync": False}
"""Context for writing: files are synced together when the folder is complete, see `durable`."""

_ARRAY, _SCALAR = 1, 3  # Flax's extension types
# How many times smaller than its content a compressed chunk can be. zstd: 4 bytes for a block of 128 KiB.
_LARGEST_RATIO = {None: 1, "gzip": 1 << 11, "zlib": 1 << 11, "bz2": 1 << 21}
_OTHER_RATIO = 1 << 16
_MOST_MISSING = 1000
_NAMED = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in (
        *(np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32),
        *(np.uint64, np.float16, np.float32, np.float64, ml_dtypes.bfloat16),
    )
}
# The words zarr uses: byte order, kind, bytes. Only numbers: nothing that could hold an object.
_ZARR = {dtype.newbyteorder("<").str: dtype for name, dtype in _NAMED.items() if name != "bfloat16"}
_ZARR["bfloat16"] = _NAMED["bfloat16"]


def named_dtype(name: object) -> np.dtype[Any]:
    """Returns the dtype called `name` ("float32", "bfloat16"). Raises ValueError if unknown."""
    if not isinstance(name, str) or name not in _NAMED:
        raise ValueError(f"unknown dtype {name!r}")
    return _NAMED[name]


def zarr_dtype(word: object) -> np.dtype[Any]:
    """Returns the dtype that zarr spells `word` ("<f4"). Raises ValueError if unknown."""
    if not isinstance(word, str) or word not in _ZARR:
        raise ValueError(f"unknown zarr dtype {word!r}")
    return _ZARR[word]


def checked_shape(value: object) -> tuple[int, ...]:
    """Returns `value` as a shape. Raises ValueError unless it is a list of sizes that can be."""
    if not isinstance(value, list | tuple) or len(value) > 32:
        raise ValueError(f"not a shape: {value!r}")
    if not all(type(size) is int and 0 <= size < 2**48 for size in value):
        raise ValueError(f"not a shape: {value!r}")
    return tuple(value)


class Header(NamedTuple):
    """What `.zarray` says of an array."""

    leaf: ShapeDtype
    chunks: tuple[int, ...]
    separator: str
    compressor: str | None

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk when uncompressed; those at the edges are as large as the others."""
        return math.prod(self.chunks) * self.leaf.dtype.itemsize


def parse_header(content: bytes, where: str) -> Header:
    """Returns the checked content of a `.zarray`. Raises `Damaged` if it is not a plain array."""
    try:
        fields = json_text.parse(content)
        shape, chunks = checked_shape(fields["shape"]), checked_shape(fields["chunks"])
        header = Header(
            ShapeDtype(shape, zarr_dtype(fields["dtype"])),
            chunks,
            fields.get("dimension_separator", "."),
            str(fields["compressor"]["id"]) if fields.get("compressor") else None,
        )
        plain = fields["zarr_format"] == 2 and fields["order"] == "C" and not fields.get("filters")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{where}/.zarray is damaged ({first_line(error)})") from error
    if not plain or len(chunks) != len(shape) or 0 in chunks or header.separator not in (".", "/"):
        raise Damaged(f"{where}/.zarray is damaged (not an array as T5X writes it)")
    return header


def check_chunks(
    header: Header,
    folder: str,
    names: Container[str],
    size_of: Callable[[str], int] | None = None,
) -> None:
    """Raises `Damaged` unless the chunks of an array in `folder` are there and can hold what it declares.

    `names`: the files that are there. `size_of` gives the bytes of one, None where that is not known.
    """
    counts = [
        -(-size // chunk) for size, chunk in zip(header.leaf.shape, header.chunks, strict=True)
    ]
    largest = _LARGEST_RATIO.get(header.compressor, _OTHER_RATIO)
    missing: list[str] = []
    # A header may declare any number of chunks, so none of the names are kept but those missing.
    for flat in range(total := math.prod(counts)):
        index: list[str] = []
        rest = flat
        for size in reversed(counts):
            rest, place = divmod(rest, size)
            index.insert(0, str(place))
        name = f"{folder}/{header.separator.join(index) or '0'}"
        if name not in names:
            missing.append(name)
            if len(missing) == _MOST_MISSING:
                break
        elif size_of is not None and (held := size_of(name)) * largest < header.chunk_bytes:
            raise Damaged(
                f"{human_bytes(held)} in {name} cannot be the {human_bytes(header.chunk_bytes)} "
                "that a chunk of it has"
            )
    if missing:
        count = f"{len(missing)}" if len(missing) < _MOST_MISSING else f"{len(missing)} or more"
        raise Damaged(f"{count} of its {shortened(f'{total:,}', 30)} chunks missing ({missing[0]})")


def read_array(kvstore: dict[str, Any], context: ts.Context) -> np.ndarray:
    """Reads a whole array. Raises `Damaged` if a chunk cannot be read or decoded."""
    import tensorstore as ts

    try:
        spec = {"driver": "zarr", "kvstore": kvstore}
        store = ts.open(spec, open=True, read=True, context=context).result()
        return np.asarray(store.read(order="C").result())
    except (ValueError, RuntimeError, TypeError, NotImplementedError, OverflowError) as error:
        raise Damaged(reason(error)) from error


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


def unpack(content: bytes, where: str) -> dict[str, Any]:
    """Returns the nested maps of a Flax msgpack file. Raises `Damaged`."""
    try:
        tree = msgpack.unpackb(content, ext_hook=_decode, raw=False, strict_map_key=True)
        if not isinstance(tree, dict):
            raise ValueError("not a map")
        return tree
    # msgpack raises its own family of ValueErrors, and RecursionError for maps nested without end.
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException) as error:
        raise Damaged(f"the index {where} is damaged ({first_line(error)})") from error


def _decode(code: int, data: bytes) -> Any:
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"an extension of type {code}")
    shape, dtype, values = msgpack.unpackb(data, raw=False)
    leaf = ShapeDtype(checked_shape(shape), named_dtype(dtype))
    if leaf.nbytes != len(values):
        raise ValueError(f"{len(values)} bytes of {leaf}")
    return np.frombuffer(values, leaf.dtype).reshape(leaf.shape)


def pack(tree: Mapping[str, Any]) -> bytes:
    """Returns nested maps with arrays as Flax's `msgpack_serialize` writes them."""
    packed: bytes = msgpack.packb(tree, default=_encode, strict_types=True)
    return packed


def _encode(value: Any) -> msgpack.ExtType:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"cannot be written to an index: {type(value)}")
    return msgpack.ExtType(_ARRAY, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))


def inline_array(value: Any) -> np.ndarray:
    """Returns a value that stands in a msgpack index as an array. Raises `Damaged`."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Damaged(f"a {type(value).__name__} stands where an array should")
    return np.asarray(value, np.int32 if isinstance(value, int) else np.float32)
