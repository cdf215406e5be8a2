# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are read from gs:// as from a disk: a local server plays the bucket's part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kcmoe import checkpoint
from kcmoe.checkpoint import run_config
from kcmoe.checkpoint.writing import convert
from kcmoe.errors import UserError

State = dict[str, np.ndarray]


@pytest.mark.parametrize("format", ["t5x_orbax", "t5x_legacy"])
def test_a_checkpoint_in_a_bucket(
    format: str,
    state: State,
    expected: object,
    bucket: Path,
    write: Callable[..., Path],
    same: Callable[..., None],
) -> None:
    name = f"{format}/checkpoint_7"
    (bucket / format).mkdir()
    write(state, format, extras={"training.json": b"{}"}).rename(bucket / name)
    reader = checkpoint.open_checkpoint(f"gs://bucket/{name}")
    assert (reader.format, reader.step, reader.extras()) == (format, 7, {"training.json": b"{}"})
    same(state, checkpoint.restore(reader, expected))
    with pytest.raises(UserError, match=r"is a model directory.*checkpoint_7"):
        checkpoint.open_checkpoint(f"gs://bucket/{format}")


def test_a_conversion_from_a_bucket_brings_the_settings(
    state: State, bucket: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    (bucket / "pod").mkdir()
    write(state).rename(bucket / "pod/checkpoint_7")
    bare = convert("gs://bucket/pod/checkpoint_7", tmp_path / "bare", "safetensors")
    assert "NUM_SELECTED_EXPERTS" not in run_config.recorded(str(bare))
    (bucket / "pod/config.gin").write_text("import seqio\nNUM_SELECTED_EXPERTS = 2\n")
    full = convert("gs://bucket/pod/checkpoint_7", tmp_path / "full", "safetensors")
    assert run_config.recorded(str(full))["NUM_SELECTED_EXPERTS"] == 2


def test_an_unfinished_save_in_a_bucket(
    state: State, bucket: Path, write: Callable[..., Path]
) -> None:
    (bucket / "half").mkdir()
    path = write(state).rename(bucket / "half/checkpoint_7")
    (path / "kcmoe.json").unlink()
    (path / "_CHECKPOINT_METADATA").unlink()
    (path / "commit_success.txt").unlink()
    with pytest.raises(UserError, match="half-finished save"):
        checkpoint.open_checkpoint("gs://bucket/half/checkpoint_7")
    with pytest.raises(UserError, match="is empty or does not exist"):
        checkpoint.open_checkpoint("gs://bucket/absent")


def test_saved_in_a_bucket(
    state: State, expected: object, bucket: Path, same: Callable[..., None]
) -> None:
    extras = {"training.json": b"{}"}
    for step in (7, 8, 9):
        values = {**state, "state/step": np.asarray(step, np.int32)}
        saved = checkpoint.save("gs://bucket/saved", step, values, extras)
        assert str(saved) == f"gs://bucket/saved/checkpoint_{step}"
    reader = checkpoint.open_checkpoint("gs://bucket/saved/checkpoint_7")
    assert (reader.format, reader.extras()) == ("t5x_orbax", extras)
    same(state, checkpoint.restore(reader, expected))
    (bucket / "saved/checkpoint_8/PINNED").touch()
    removed = checkpoint.remove_old("gs://bucket/saved", 1)
    assert [path.name for path in removed] == ["checkpoint_7"]
    (bucket / "saved/checkpoint_9/commit_success.txt").unlink()
    assert checkpoint.latest("gs://bucket/saved") == saved.parent / "checkpoint_8"
    assert checkpoint.clean("gs://bucket/saved") == []  # a copy on its way may look like this
    under_way = bucket / "saved/checkpoint_9/kcmoe_under_way"
    assert not under_way.exists()
    under_way.touch()
    assert checkpoint.clean("gs://bucket/saved") == [saved]
    assert {path.parts[-1] for path in (bucket / "saved").glob("**/*") if path.is_file()} > {
        "PINNED"
    }
    assert not [path for path in (bucket / "saved/checkpoint_9").rglob("*") if path.is_file()]


def test_what_buckets_cannot_do(state: State, bucket: Path, write: Callable[..., Path]) -> None:
    write(state, "safetensors").rename(bucket / "exported")
    with pytest.raises(UserError, match="copy the folder to this machine first"):
        checkpoint.open_checkpoint("gs://bucket/exported")
    with pytest.raises(UserError, match="not on this machine"):
        convert("gs://bucket/exported", "gs://bucket/run/checkpoint_7", "t5x_orbax")
    with pytest.raises(UserError, match="cannot be opened"):
        checkpoint.open_checkpoint("nowhere://bucket/checkpoint_7")
