# SPDX-License-Identifier: Apache-2.0
"""The indexes of T5X's formats: Orbax's JSON `_METADATA`, and Flax's msgpack files.

A msgpack index holds nested maps, text, numbers and arrays (Flax's extension type 1: shape, dtype
name, bytes). Only these are decoded; nothing in a file can name a type to build. Sources of the
encodings: flax `serialization.py` (msgpack), orbax `tree_metadata` (JSON).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from kcmoe.checkpoint import arrays
from kcmoe.checkpoint.leaves import ShapeDtype, checked_shape, flatten, named_dtype
from kcmoe.checkpoint.storage import Damaged
from kcmoe.io.wording import first_line

_ARRAY, _SCALAR = 1, 3
_PLACEHOLDER = "PLACEHOLDER://"
_DICT_KEY = 2
_EMPTY_TYPES = {"None", "Dict", "List", "NamedTuple", "Tuple"}
_CHUNKED = "__msgpack_chunked_array__"


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


def parse_placeholders(content: bytes) -> dict[str, np.ndarray | None]:
    """Reads the index of Orbax before `_METADATA`: path -> values, None if stored apart."""
    found: dict[str, np.ndarray | None] = {}
    for path, value in flatten(unpack(content, "state/checkpoint")).items():
        if isinstance(value, str) and value.startswith(_PLACEHOLDER):
            if value[len(_PLACEHOLDER) :] != path.replace("/", "."):
                raise Damaged(f"the index state/checkpoint names {value!r} for {path}")
            found[path] = None
        elif value is not None:
            found[path] = inline_array(value)
    return found


def parse_orbax_metadata(content: bytes) -> dict[str, tuple[int, ...] | None]:
    """Reads `_METADATA`: path -> shape (None where an older Orbax did not note it)."""
    found: dict[str, tuple[int, ...] | None] = {}
    try:
        fields = json.loads(content)
        if fields.get("use_zarr3"):
            raise ValueError("zarr 3, which T5X does not write")
        for entry in fields["tree_metadata"].values():
            names = [part["key"] for part in entry["key_metadata"]]
            if not names or not all(isinstance(name, str) and name for name in names):
                raise ValueError(f"a path {names!r}")
            value = entry["value_metadata"]
            if value.get("skip_deserialize") or value.get("value_type") in _EMPTY_TYPES:
                continue
            shape = value.get("write_shape")
            found["/".join(names)] = None if shape is None else checked_shape(shape)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"the index state/_METADATA is damaged ({first_line(error)})") from error
    return found


def orbax_metadata(tree: Mapping[str, ShapeDtype]) -> dict[str, Any]:
    """Returns the content of `_METADATA` for arrays stored in OCDBT as zarr 2."""
    entries = {}
    for path, leaf in tree.items():
        names = tuple(path.split("/"))
        entries[str(names)] = {
            "key_metadata": [{"key": name, "key_type": _DICT_KEY} for name in names],
            "value_metadata": {
                "value_type": "jax.Array",
                "skip_deserialize": False,
                # Orbax notes here the part that each process wrote, which is the whole array.
                "write_shape": list(leaf.shape),
            },
        }
    return {
        "tree_metadata": entries,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


def orbax_shardings(tree: Mapping[str, ShapeDtype]) -> dict[str, str]:
    """Returns the content of `_sharding`: where Orbax puts arrays if nobody says (T5X does)."""
    first_device = {
        "sharding_type": "NamedSharding",
        "shape": [1],
        "axis_names": ["data"],
        "axis_types": ["AxisType.Auto"],
        "partition_spec": [],
        "device_mesh": {"mesh": [{"id": 0}]},
    }
    text = json.dumps(first_device)
    return {base64.b64encode(path.replace("/", ".").encode()).decode(): text for path in tree}


def orbax_array_metadatas(tree: Mapping[str, ShapeDtype]) -> dict[str, Any]:
    """Returns the content of `array_metadatas/process_0`: shape and chunks of every array."""
    return {
        "array_metadatas": [
            {
                "array_metadata": {
                    "param_name": path.replace("/", "."),
                    "write_shape": list(leaf.shape),
                    "chunk_shape": list(arrays.chunk_shape(leaf)),
                    "ext_metadata": None,
                }
            }
            for path, leaf in tree.items()
        ]
    }
