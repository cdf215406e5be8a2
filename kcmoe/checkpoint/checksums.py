# SPDX-License-Identifier: Apache-2.0
"""`kcmoe.json`: what a checkpoint of ours should hold, leaf by leaf, with checksums.

Neither zarr nor OCDBT nor safetensors protects values against a flipped bit, so we write the CRC-32
of every leaf and of every extra file beside them, and check them when reading. Checkpoints of T5X
have no such file and are read without it. T5X ignores it in ours. The checksum of a leaf is that of
its values in C order, little-endian, so it is the same in every format.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kcmoe.checkpoint.encodings import checked_shape, named_dtype
from kcmoe.checkpoint.storage import Damaged, Folder, step_of
from kcmoe.errors import UserError
from kcmoe.io import json_text
from kcmoe.tree import ShapeDtype

NAME = "kcmoe.json"
RUN_FILE = "training.json"
"""The extra file that `kcmoe train` saves in each checkpoint."""
_VERSION = 1
_RESERVED = {NAME, "checkpoint", "state", "dataset", "commit_success.txt", "_CHECKPOINT_METADATA"}
_RESERVED |= {"PINNED"}


@dataclasses.dataclass(frozen=True)
class Saved:
    """What was saved: step, leaves with checksums, and the extra files with theirs."""

    step: int | None
    leaves: Mapping[str, tuple[ShapeDtype, str]]
    extras: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """Returns the file's content; its last field is the checksum of the rest."""
        fields: dict[str, Any] = {
            "kcmoe_checkpoint": _VERSION,
            "step": self.step,
            "extras": dict(self.extras),
            "leaves": {
                path: [list(leaf.shape), leaf.dtype.name, crc]
                for path, (leaf, crc) in self.leaves.items()
            },
        }
        fields["checksum"] = bytes_checksum(_canonical(fields))
        return json.dumps(fields, indent=1).encode() + b"\n"


def bytes_checksum(content: bytes) -> str:
    """Returns CRC-32 of `content` as eight hexadecimal digits."""
    return f"{zlib.crc32(content):08x}"


def check_extra_name(name: str) -> None:
    """Raises `UserError` unless `name` may be a file beside the leaves."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in _RESERVED:
        raise UserError(f"{name!r} cannot be an extra file of a checkpoint: choose another name")
    if name.startswith(("model-", "model.")) or name.endswith(".safetensors"):
        raise UserError(f"{name!r} cannot be an extra file of a checkpoint: choose another name")


def write(
    folder: Path,
    step: int | None,
    sums: Mapping[str, tuple[ShapeDtype, str]],
    extras: Mapping[str, bytes],
) -> None:
    """Writes the extra files and `kcmoe.json`, which holds the checksums of all."""
    for name, content in extras.items():
        (folder / name).write_bytes(content)
    crcs = {name: bytes_checksum(content) for name, content in extras.items()}
    saved = Saved(step, dict(sorted(sums.items())), crcs)
    (folder / NAME).write_bytes(saved.to_bytes())


def load(folder: Folder) -> Saved | None:
    """Reads `kcmoe.json`; None where there is none. Raises `UserError` if it is damaged."""
    if not folder.exists(NAME):
        return None
    try:
        fields = json_text.parse(folder.read(NAME))
        if fields["checksum"] != bytes_checksum(_canonical(fields)):
            raise Damaged("its own checksum differs")
        if fields["kcmoe_checkpoint"] != _VERSION:
            raise Damaged(f"version {fields['kcmoe_checkpoint']} is not known here")
        leaves = {
            path: (ShapeDtype(checked_shape(shape), named_dtype(dtype)), str(crc))
            for path, (shape, dtype, crc) in fields["leaves"].items()
        }
        return Saved(fields["step"], leaves, dict(fields["extras"]))
    except (ValueError, KeyError, TypeError, AttributeError, Damaged) as error:
        raise UserError(
            f"{folder.path}/{NAME} is damaged ({error}): take another checkpoint, or delete that "
            "file to read this one without checksums"
        ) from error


def lost(folder: Folder) -> str:
    """Returns how a folder without `kcmoe.json` shows that it had one, "" if it need not have had one."""
    if folder.remote or folder.exists(NAME):
        return ""
    if folder.exists(RUN_FILE):
        return f"its {RUN_FILE} says that kcmoe saved it"
    place = Path(folder.path)
    if step_of(place) is None:
        return ""
    beside = (path for path in sorted(place.parent.glob("checkpoint_*")) if (path / NAME).is_file())
    return next((f"{path.name} beside it has one" for path in beside), "")


def _canonical(fields: Mapping[str, Any]) -> bytes:
    rest = {name: value for name, value in fields.items() if name != "checksum"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()


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
