# SPDX-License-Identifier: Apache-2.0
"""Checkpoints without checksums whose files lie: links to nowhere, shapes that no file can hold, names.

None of them may be read as something else, end the process, or take memory for what is not there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from kcmoe import checkpoint
from kcmoe.checkpoint.safetensors import TensorFile
from kcmoe.checkpoint.writing import convert
from kcmoe.errors import UserError
from kcmoe.tree import ShapeDtype

State = dict[str, np.ndarray]
LEAF = "target/encoder/layers_0/mlp/wi_0/kernel"
NAME = LEAF.replace("/", ".")


@pytest.fixture
def legacy(write: Callable[..., Path], state: State) -> Path:
    path = write(state, "t5x_legacy")
    (path / "kcmoe.json").unlink()
    return path


@pytest.fixture
def plain(write: Callable[..., Path], state: State) -> Path:
    """The Orbax layout with plain zarr folders in place of the database, uncompressed."""
    path = write(state, "t5x_orbax")
    (path / "kcmoe.json").unlink()
    (path / "state/manifest.ocdbt").unlink()
    for leaf, array in state.items():
        place = f"{path}/state/{leaf.replace('/', '.')}/"
        metadata = {
            "shape": array.shape,
            "chunks": [max(1, size) for size in array.shape],
            "dtype": "bfloat16" if array.dtype.name == "bfloat16" else array.dtype.str,
            "compressor": None,
        }
        store = ts.open(
            {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": place},
                "metadata": metadata,
                "store_data_equal_to_fill_value": True,
            },
            create=True,
        ).result()
        store.write(array).result()
    return path


def chunk_of(path: Path) -> Path:
    return next(path.rglob(f"{NAME}/0.0"))


def declare(path: Path, shape: list[int], chunks: list[int], **fields: object) -> None:
    """Makes the leaf's header and index say another shape, over one chunk of four bytes."""
    header = path / "state" / NAME / ".zarray"
    content = json.loads(header.read_text()) | {"shape": shape, "chunks": chunks, **fields}
    header.write_text(json.dumps(content))
    for file in header.parent.iterdir():
        if file != header:
            file.unlink()
    (header.parent / ".".join("0" for _ in shape)).write_bytes(b"abcd")
    index = path / "state/_METADATA"
    entries = json.loads(index.read_text())
    for entry in entries["tree_metadata"].values():
        if "/".join(part["key"] for part in entry["key_metadata"]) == LEAF:
            entry["value_metadata"]["write_shape"] = shape
    index.write_text(json.dumps(entries))


def test_plain_zarr_is_read(plain: Path, state: State, expected: object) -> None:
    assert np.array_equal(checkpoint.restore(plain, expected)[LEAF], state[LEAF])


@pytest.mark.parametrize("kind", ["legacy", "plain"])
@pytest.mark.parametrize("how", ["link", "loop", "pipe", "folder"])
def test_a_chunk_that_cannot_be_read_is_not_there(
    kind: str, how: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(kind)
    chunk = chunk_of(path)
    chunk.unlink()
    if how == "link":
        chunk.symlink_to("/nowhere/0.0")
    elif how == "loop":
        chunk.symlink_to(chunk.name)
    elif how == "pipe":
        os.mkfifo(chunk)
    else:
        chunk.mkdir()
    with pytest.raises(UserError, match=f"{LEAF}: 1 of its 1 chunks missing"):
        checkpoint.open_checkpoint(path).tree()


def test_a_link_to_a_chunk_is_the_chunk(legacy: Path, expected: object, tmp_path: Path) -> None:
    chunk = chunk_of(legacy)
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    checkpoint.restore(legacy, expected)


@pytest.mark.parametrize(
    ("shape", "chunks", "fields", "wrong"),
    [
        ([2**36], [2**36], {"compressor": None}, "cannot be the 274.9 GB"),
        ([2**36], [2**36], {"compressor": {"id": "zstd", "level": 1}}, "cannot be the 274.9 GB"),
        ([4], [2**36], {"compressor": {"id": "gzip", "level": 1}}, "cannot be the 274.9 GB"),
        ([2**40], [1], {"compressor": None}, "1,099,511,627,776 chunks missing"),
        ([2**47] * 9, [1] * 9, {"compressor": None}, "chunks missing"),
    ],
)
def test_a_shape_is_compared_with_the_files_before_memory_is_taken(
    shape: list[int], chunks: list[int], fields: dict[str, object], wrong: str, plain: Path
) -> None:
    declare(plain, shape, chunks, **fields)
    # In a process of its own, as the fault was the end of the process.
    code = (
        "import sys; from kcmoe import checkpoint; from kcmoe.errors import UserError\n"
        "try: checkpoint.open_checkpoint(sys.argv[1]).tree()\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, plain], capture_output=True, text=True, timeout=60
    )
    assert wrong in done.stdout, done.stderr[-500:]


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("t5x_orbax", "state/_METADATA"),
        ("t5x_orbax", "kcmoe.json"),
        ("t5x_legacy", "kcmoe.json"),
        ("t5x_legacy", f"{NAME}/.zarray"),
        ("safetensors", "kcmoe.json"),
        ("safetensors", "model.safetensors.index.json"),
    ],
)
def test_brackets_without_end(
    format: str, name: str, state: State, write: Callable[..., Path]
) -> None:
    path = write(state, format)
    if name.endswith("index.json"):
        (path / "model.safetensors").rename(path / "model-1.safetensors")
    (path / name).write_text("[" * 200_000)
    with pytest.raises(UserError, match="nested too deeply"):
        checkpoint.open_checkpoint(path).tree()


@pytest.mark.parametrize("format", ["t5x_orbax", "t5x_legacy", "safetensors"])
@pytest.mark.parametrize(
    "names",
    [
        ["encoder/kernel"],
        ["target"],
        ["target/a//b"],
        ["/target/a"],
        ["target/../../a"],
        ["target/./a"],
        ["target/.zarray"],
        ["target/a/"],
        ["target/a", "target/a/b"],
        ["target/a.b", "target/a/b"],
        ["target/a\nb"],
        ["target/a\0b"],
    ],
)
def test_names_that_cannot_be_read_back_are_not_written(
    format: str, names: list[str], tmp_path: Path
) -> None:
    source, copy = tmp_path / "source/checkpoint_1", tmp_path / "new/copy"
    source.mkdir(parents=True)
    leaf = ShapeDtype((2,), np.dtype(np.float32))
    file = TensorFile(source / "model.safetensors", dict.fromkeys(names, leaf), {})
    for name in names:
        file.write(name, np.ones(2, np.float32))
    file.close()
    with pytest.raises(UserError, match="cannot be written in"):
        convert(source, copy, format)
    assert not copy.parent.exists()


@pytest.mark.parametrize("how", ["pipe", "device"])
def test_a_safetensors_file_that_is_none_is_never_opened(how: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    if how == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="a device or a pipe"):
        checkpoint.open_checkpoint(tmp_path).tree()
