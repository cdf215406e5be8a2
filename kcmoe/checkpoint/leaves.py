# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint is made of: leaves, each a path, a shape, a dtype and a checksum.

A state is a flat mapping from path to array, in T5X's tree: `target/<parameter>`,
`state/param_states/<parameter>/{m,v,v_row,v_col}` and `state/step`. This file knows no file format.
The checksum is CRC-32 of the values in C order, little-endian, so it is the same in every format.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

STEP_PATH = "state/step"
PARAMETER_PREFIX = "target/"
OPTIMIZER_PREFIX = "state/param_states/"

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


class ShapeDtype(NamedTuple):
    """Shape and dtype of one leaf."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes when uncompressed."""
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"


def shape_dtype(array: Any) -> ShapeDtype:
    """Returns shape and dtype of anything that has both (NumPy, JAX, `jax.ShapeDtypeStruct`)."""
    return ShapeDtype(tuple(int(size) for size in array.shape), np.dtype(array.dtype))


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


def checksum(array: np.ndarray) -> str:
    """Returns CRC-32 of the values in C order as eight hexadecimal digits."""
    return f"{zlib.crc32(raw_bytes(array)):08x}"


def raw_bytes(array: np.ndarray) -> memoryview:
    """Returns the values in C order as bytes, without a copy where the array is contiguous."""
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def count_non_finite(array: np.ndarray) -> int:
    """Returns how many values are NaN or infinite, looking at a few megabytes at a time."""
    if array.dtype.kind in "biu":
        return 0
    flat, window = np.ascontiguousarray(array).reshape(-1), 1 << 20
    return sum(
        int(np.count_nonzero(~np.isfinite(flat[start : start + window])))
        for start in range(0, flat.size, window)
    )


def flatten(tree: Mapping[str, Any], is_leaf: Any = None, prefix: str = "") -> dict[str, Any]:
    """Returns path -> leaf of nested mappings; empty ones vanish, as they hold nothing."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if not isinstance(name, str):
            raise ValueError(f"a name in the tree is not text: {name!r}")
        if isinstance(value, Mapping) and not (is_leaf and is_leaf(value)):
            flat.update(flatten(value, is_leaf, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts of path -> leaf; the opposite of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def total_bytes(leaves: Iterable[ShapeDtype]) -> int:
    """Returns the uncompressed size of all leaves together."""
    return sum(leaf.nbytes for leaf in leaves)
