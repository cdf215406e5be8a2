# SPDX-License-Identifier: Apache-2.0
"""restore(): all or nothing, with every fault named in one error; parts only by pattern; shardings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kcmoe import checkpoint
from kcmoe.errors import UserError

State = dict[str, np.ndarray]
EMBEDDING = "target/token_embedder/embedding"
NORM = "target/encoder/encoder_norm/scale"
EXPERT = "target/encoder/layers_1/mlp/expert/wi_0/kernel"
HALF = "target/decoder/half/kernel"
FORMATS = ["t5x_orbax", "t5x_legacy", "safetensors"]


def struct(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("format", FORMATS)
def test_restores_what_was_saved(
    format: str, state: State, expected: Any, write: Callable[..., Path], same: Callable[..., None]
) -> None:
    same(state, checkpoint.restore(write(state, format), expected))


@pytest.mark.parametrize("format", FORMATS)
def test_every_fault_is_named_with_both_shapes(
    format: str, state: State, expected: Any, write: Callable[..., Path]
) -> None:
    state["target/encoder/layers_0/attention/query/kernel"][3, 4] = np.nan
    state[HALF][0, 0] = np.inf
    expected[EXPERT] = struct(8, 16, 24)
    expected[NORM] = struct(16, dtype="bfloat16")
    expected["target/encoder/layers_7/new"] = struct(3)
    del expected[EMBEDDING]
    with pytest.raises(UserError, match=r"cannot be restored.*6 leaves") as caught:
        checkpoint.restore(write(state, format), expected)
    message = str(caught.value)
    for fault in (
        f"{EXPERT}: float32[4, 16, 24] here, float32[8, 16, 24] expected",
        f"{NORM}: float32[16] here, bfloat16[16] expected",
        "target/encoder/layers_7/new: missing (float32[3] expected)",
        f"{EMBEDDING}: float32[48, 16] here, not expected",
        "attention/query/kernel: 1 of 256 values of float32[16, 16] are not finite",
        f"{HALF}: 1 of 15 values of bfloat16[5, 3] are not finite",
        "NUM_EXPERTS 4 here, 8 expected",
    ):
        assert fault in message, fault


def test_only_what_a_pattern_names_is_loaded_and_compared(
    state: State, expected: Any, write: Callable[..., Path], same: Callable[..., None]
) -> None:
    path = write(state)
    parameters = {name: leaf for name, leaf in expected.items() if name.startswith("target/")}
    wanted = {name: state[name] for name in parameters}
    same(wanted, checkpoint.restore(path, parameters, patterns=["target/"]))
    expected[NORM] = struct(99)
    only = checkpoint.restore(path, expected, patterns=["target/token_embedder", "state/step$"])
    assert only.keys() == {EMBEDDING, "state/step"}
    with pytest.raises(UserError, match=r"float32\[16\] here, float32\[99\] expected"):
        checkpoint.restore(path, expected, patterns=["target/encoder"])
    with pytest.raises(UserError, match="'targets/' matches no leaf"):
        checkpoint.restore(path, expected, patterns=["target/", "targets/"])
    with pytest.raises(UserError, match="not a regular expression"):
        checkpoint.restore(path, expected, patterns=["target/("])


def test_a_pattern_does_not_hide_a_damaged_leaf_it_names(
    state: State, expected: Any, write: Callable[..., Path]
) -> None:
    path = write(state, "t5x_legacy")
    shutil.rmtree(path / EXPERT.replace("/", "."))
    with pytest.raises(UserError, match=f"1 leaf: {EXPERT}: missing"):
        checkpoint.restore(path, expected, patterns=["target/"])
    assert len(checkpoint.restore(path, expected, patterns=["state/"])) == 18


@pytest.mark.devices(4)
def test_leaves_go_to_the_devices_their_sharding_names(
    state: State, expected: Any, write: Callable[..., Path], same: Callable[..., None]
) -> None:
    mesh = jax.make_mesh((2, 2), ("data", "expert"), devices=jax.devices()[:4])
    split = NamedSharding(mesh, PartitionSpec("expert"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    path = write(state)
    by_function = checkpoint.restore(
        path, expected, sharding=lambda name: split if name == EXPERT else everywhere
    )
    expected[EXPERT] = jax.ShapeDtypeStruct((4, 16, 24), np.float32, sharding=split)
    by_struct = checkpoint.restore(path, expected)
    for restored in (by_function, by_struct):
        assert restored[EXPERT].sharding.is_equivalent_to(split, 3)
        assert restored[EXPERT].addressable_shards[0].data.shape == (2, 16, 24)
        same(state, {name: np.asarray(array) for name, array in restored.items()})
    assert by_function[NORM].sharding.is_equivalent_to(everywhere, 1)
    assert isinstance(by_struct[NORM], np.ndarray)


@pytest.mark.devices(4)
def test_sharded_arrays_are_saved_whole(
    state: State, tmp_path: Path, same: Callable[..., None]
) -> None:
    mesh = jax.make_mesh((4,), ("expert",), devices=jax.devices()[:4])
    on_devices: dict[str, Any] = dict(state)
    on_devices[EXPERT] = jax.device_put(state[EXPERT], NamedSharding(mesh, PartitionSpec("expert")))
    reader = checkpoint.open_checkpoint(checkpoint.save(tmp_path, 7, on_devices))
    same(state, dict(reader.read_all(reader.tree())))


def test_places_that_hold_no_finished_checkpoint(
    state: State, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(state, name="run/checkpoint_7")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("hello")
    (tmp_path / "begun/checkpoint_5.orbax-checkpoint-tmp-3").mkdir(parents=True)
    (tmp_path / "begun/config.gin").write_text("")
    half = tmp_path / "run/checkpoint_8.orbax-checkpoint-tmp-3"
    shutil.copytree(path, half)
    zarr_only = write(state, "t5x_legacy", name="old/checkpoint_7")
    (zarr_only / "checkpoint").unlink()
    (zarr_only / "kcmoe.json").unlink()
    for place, words in (
        (tmp_path / "run", "is a model directory: name one of its checkpoints.*run.checkpoint_7"),
        (tmp_path / "run/checkpoint_9", "there is no checkpoint .*There are checkpoint_7"),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "begun", r"begun has no finished checkpoint yet .*wait for the first save"),
        (tmp_path / "other", "in no format known here"),
        (half, "half-finished save"),
        (zarr_only, "half-finished save"),
    ):
        with pytest.raises(UserError, match=words):
            checkpoint.open_checkpoint(place)
    (path / "commit_success.txt").unlink()
    with pytest.raises(UserError, match=r"half-finished save .it has no commit_success"):
        checkpoint.open_checkpoint(path)


def test_a_tensorflow_checkpoint_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(b'model_checkpoint_path: "model.ckpt-1000"')
    with pytest.raises(UserError, match="is a TensorFlow checkpoint"):
        checkpoint.open_checkpoint(tmp_path).tree()


def test_t5x_half_finished_saves_are_refused(reference: Path, tmp_path: Path) -> None:
    shutil.copytree(
        reference / "packed_top2/t5x_orbax/checkpoint_8",
        tmp_path / "checkpoint_8",
        copy_function=shutil.copyfile,
    )
    for folder in (tmp_path / "checkpoint_8", *tmp_path.glob("checkpoint_8/**/")):
        folder.chmod(0o755)
    assert checkpoint.open_checkpoint(tmp_path / "checkpoint_8").step == 8
    (tmp_path / "checkpoint_8/commit_success.txt").unlink()
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(UserError, match="half-finished"):
        checkpoint.open_checkpoint(tmp_path / "checkpoint_8")


def test_the_step_must_be_the_states(state: State, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="asked to save step 8, but state/step is 7"):
        checkpoint.save(tmp_path, 8, state)
    assert list(tmp_path.iterdir()) == []
