# SPDX-License-Identifier: Apache-2.0
"""Checkpoints cut short, with flipped bits or lost files, by the hundred.

Each one is refused with a `UserError`, or the damage is harmless and the very same state comes back:
never another exception, never other numbers.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcmoe import checkpoint
from kcmoe.errors import UserError

State = dict[str, np.ndarray]
FORMATS = ["t5x_orbax", "t5x_legacy", "safetensors"]
EXTRAS = {"training.json": b'{"row": 12345}'}


def damage(file: Path, kind: str, rng: random.Random) -> None:
    """Damages one file in place."""
    data = bytearray(file.read_bytes())
    place = rng.randrange(len(data)) if data else 0
    if kind == "delete" or not data:
        file.unlink()
        return
    if kind == "cut":
        del data[place:]
    elif kind == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[place] = rng.randrange(256)
    elif kind == "zeros":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    else:
        data += bytes(rng.randrange(1, 9))
    file.write_bytes(data)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["cut", "flip", "byte", "zeros", "grow", "delete"])
def test_damage_is_refused_or_harmless(
    format: str,
    kind: str,
    state: State,
    expected: Any,
    write: Callable[..., Path],
    same: Callable[..., None],
    tmp_path: Path,
) -> None:
    rng = random.Random(f"{format} {kind}")
    good = write(state, format, extras=EXTRAS)
    files = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file())
    bad = tmp_path / "bad/checkpoint_7"
    outcomes: Counter[str] = Counter()
    for _ in range(20):
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        damage(bad / rng.choice(files), kind, rng)
        try:
            reader = checkpoint.open_checkpoint(bad)
            restored = checkpoint.restore(reader, expected)
            extras = reader.extras()
            assert reader.step == 7
        except UserError as error:
            outcomes["refused"] += str(bad) in str(error)
        else:
            same(state, restored)
            # Without kcmoe.json nothing says which files are extras.
            assert extras == (EXTRAS if (bad / "kcmoe.json").exists() else {})
            outcomes["harmless"] += 1
    assert outcomes["refused"] > 0
    assert outcomes.total() == 20


@pytest.mark.parametrize("format", FORMATS)
def test_a_flipped_bit_in_the_values_is_always_found(
    format: str, new_state: Callable[..., State], expected: Any, write: Callable[..., Path]
) -> None:
    # One leaf of random numbers is nearly all of the file, so the middle half of the file is inside it,
    # whatever order the leaves were written in.
    state = new_state()
    state["target/large"] = np.random.default_rng(3).normal(size=(1024, 1024)).astype(np.float32)
    expected["target/large"] = state["target/large"]
    path = write(state, format)
    largest = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = largest.read_bytes()
    rng = random.Random(5)
    for _ in range(12):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content) // 4, len(content) * 3 // 4)] ^= 1 << rng.randrange(8)
        largest.write_bytes(flipped)
        with pytest.raises(UserError, match="target/large"):
            checkpoint.restore(path, expected)
    largest.write_bytes(content)
    checkpoint.restore(path, expected)


@pytest.mark.parametrize(
    ("damage_of", "said"),
    [
        (Path.unlink, "missing"),
        (lambda file: os.truncate(file, 9000), "is cut off"),
        (lambda file: file.write_bytes(bytes(file.stat().st_size)), "bytes are damaged"),
    ],
)
def test_many_damaged_leaves_are_few_words(
    tmp_path: Path, damage_of: Callable[[Path], Any], said: str
) -> None:
    rng = np.random.default_rng(0)
    leaf = "target/encoder/layers_{}/attention/query/kernel"
    state = {leaf.format(i): rng.normal(size=(512, 1024)).astype(np.float32) for i in range(20)}
    path = checkpoint.save(tmp_path, 1, {"state/step": np.int32(1), **state})
    damage_of(max((path / "state/d").iterdir(), key=lambda file: file.stat().st_size))
    with pytest.raises(UserError, match=said) as caught:
        checkpoint.restore(path, state)
    assert len(str(caught.value)) < 400, str(caught.value)
    # The file may be that of the database's own tree, and then nothing is known of any leaf.
    assert " more: " in str(caught.value) or "state/manifest.ocdbt: " in str(caught.value)


def test_two_leaves_cannot_change_places(
    state: State, expected: Any, write: Callable[..., Path]
) -> None:
    """A changed digit in the old index would read another layer's array of the same shape."""
    path = write(state, "t5x_legacy")
    (path / "kcmoe.json").unlink()
    index = path / "checkpoint"
    content = index.read_bytes()
    one = b"target.encoder.layers_0.attention.query.kernel/"
    assert one in content
    index.write_bytes(content.replace(one, one.replace(b"encoder", b"decoder")))
    with pytest.raises(UserError, match="its entry in the index checkpoint is damaged"):
        checkpoint.restore(path, expected)


@pytest.mark.parametrize("format", ["t5x_orbax", "t5x_legacy"])
@pytest.mark.parametrize("kind", ["cut", "delete"])
def test_t5x_checkpoints_cut_short(
    format: str, kind: str, reference: Path, tmp_path: Path, same: Callable[..., None]
) -> None:
    """T5X saves no checksums, but what is missing is found all the same."""
    rng = random.Random(f"{format} {kind}")
    good = next((reference / "factored_unpacked" / format).iterdir())
    reader = checkpoint.open_checkpoint(good)
    values = dict(reader.read_all(reader.tree()))
    files = sorted(
        path.relative_to(good)
        for path in good.rglob("*")
        if path.is_file() and path.stat().st_size > 1000
    )
    bad = tmp_path / good.name
    shutil.copytree(good, bad, copy_function=shutil.copyfile)
    for folder in (bad, *bad.glob("**/")):
        folder.chmod(0o755)
    refused = 0
    for _ in range(8):
        file = rng.choice(files)
        damage(bad / file, kind, rng)
        try:
            restored = checkpoint.restore(bad, values)
        except UserError:
            refused += 1
        else:
            same(values, restored)
        shutil.copyfile(good / file, bad / file)
    assert refused > 0
    same(values, checkpoint.restore(bad, values))
