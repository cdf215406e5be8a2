# SPDX-License-Identifier: Apache-2.0
"""Each format gives back what was written, and the libraries that own a format read ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgpack
import numpy as np
import pytest
import tensorstore as ts

from kcmoe import checkpoint
from kcmoe.checkpoint import encodings
from kcmoe.errors import UserError
from kcmoe.tree import ShapeDtype, flattened, nested

FORMATS = ["t5x_orbax", "t5x_legacy", "safetensors"]
State = dict[str, np.ndarray]


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip_keeps_every_bit(
    format: str, state: State, write: Callable[..., Path], same: Callable[..., None]
) -> None:
    path = write(state, format, extras={"training.json": b'{"row": 5}'})
    reader = checkpoint.open_checkpoint(path)
    assert (reader.format, reader.step) == (format, 7)
    assert reader.extras() == {"training.json": b'{"row": 5}'}
    same(state, dict(reader.read_all(reader.tree())))
    same(state, {name: reader.read(name) for name in state})


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_and_several_chunks(
    format: str,
    write: Callable[..., Path],
    same: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encodings, "CHUNK_BYTES", 64)
    state = {
        "target/zeros": np.zeros((6, 35), np.float32),
        "target/numbers": np.arange(7 * 22, dtype=np.float64).reshape(7, 22),
        "state/step": np.asarray(7, np.int32),
    }
    assert encodings.chunk_shape(ShapeDtype((6, 35), np.dtype("float32"))) == (1, 7)
    reader = checkpoint.open_checkpoint(write(state, format))
    same(state, dict(reader.read_all(reader.tree())))


def test_chunks_divide_the_array_and_stay_small() -> None:
    for shape in [(), (5,), (32128, 768), (16, 768, 2048), (0, 3), (1, 1, 10**7)]:
        leaf = ShapeDtype(shape, np.dtype("float32"))
        chunks = encodings.chunk_shape(leaf)
        assert np.prod(chunks) * 4 <= encodings.CHUNK_BYTES
        assert all(size % chunk == 0 for size, chunk in zip(shape, chunks, strict=True))


def test_orbax_itself_restores_ours(state: State, write: Callable[..., Path]) -> None:
    import jax
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(
        write(state).parent,
        item_handlers={"state": ocp.PyTreeCheckpointHandler(use_ocdbt=True)},
        options=ocp.CheckpointManagerOptions(step_prefix="checkpoint", read_only=True),
    )
    assert manager.latest_step() == 7
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    nest = nested(state)
    arguments = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=device), nest)
    restored = manager.restore(
        7, args=ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=arguments))
    )["state"]
    jax.tree.map(np.testing.assert_array_equal, nest, restored)
    manager.close()


def test_flax_reads_the_old_index_and_we_read_what_flax_packs() -> None:
    from flax import serialization

    tree = {"optimizer": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, "version": 3}
    assert encodings.pack(tree) == serialization.msgpack_serialize(tree)
    unpacked = encodings.unpack(serialization.to_bytes({"x": np.float32(2), "y": 3}), "index")
    assert (unpacked["x"], unpacked["y"]) == (np.float32(2), 3)


def test_the_safetensors_library_reads_ours_and_we_read_its(
    state: State, write: Callable[..., Path], tmp_path: Path, same: Callable[..., None]
) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    plain = {path: a for path, a in state.items() if a.dtype != "bfloat16"}
    same(plain, library.load_file(write(plain, "safetensors") / "model.safetensors"))
    (tmp_path / "theirs").mkdir()
    library.save_file(plain, tmp_path / "theirs/weights.safetensors")
    reader = checkpoint.open_checkpoint(tmp_path / "theirs/weights.safetensors")
    same(plain, dict(reader.read_all(reader.tree())))
    assert reader.step == 7


def test_safetensors_in_several_files(
    state: State, tmp_path: Path, same: Callable[..., None]
) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    plain = {path: a for path, a in state.items() if a.dtype != "bfloat16"}
    halves = sorted(plain)[::2], sorted(plain)[1::2]
    weights = {}
    for number, half in enumerate(halves):
        library.save_file({path: plain[path] for path in half}, tmp_path / f"{number}.safetensors")
        weights.update(dict.fromkeys(half, f"{number}.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    reader = checkpoint.open_checkpoint(tmp_path)
    same(plain, dict(reader.read_all(reader.tree())))
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(UserError, match=r"leaves: .*1\.safetensors is not there") as caught:
        checkpoint.open_checkpoint(tmp_path).tree()
    named = sum(path in str(caught.value) for path in halves[1])
    assert named == 1  # what is alike is said once
    assert f"and {len(halves[1]) - named} more" in str(caught.value)


def test_old_checkpoint_written_in_a_bucket_by_an_older_t5x(
    state: State, write: Callable[..., Path], same: Callable[..., None]
) -> None:
    # On a pod T5X notes a dummy bucket, and before TensorStore 0.1.14 the path stood outside kvstore.
    path = write(state, "t5x_legacy")
    index = encodings.unpack((path / "checkpoint").read_bytes(), "checkpoint")

    def as_on_a_pod(node: dict) -> dict:
        if "kvstore" not in node:
            return {k: as_on_a_pod(v) if isinstance(v, dict) else v for k, v in node.items()}
        folder = node["kvstore"]["path"]
        kvstore = {"driver": "gcs", "bucket": "t5x-dummy-bucket"}
        return {**node, "kvstore": kvstore, "path": folder}

    content = {"version": 3, "optimizer": as_on_a_pod(index["optimizer"])}
    assert "dummy" in str(content)
    (path / "checkpoint").write_bytes(encodings.pack(content))
    (path / "kcmoe.json").unlink()
    reader = checkpoint.open_checkpoint(path)
    same(state, dict(reader.read_all(reader.tree())))


def test_orbax_before_its_json_index(
    state: State, write: Callable[..., Path], same: Callable[..., None]
) -> None:
    # Plain zarr folders, and a msgpack index of PLACEHOLDER:// words with small values inline.
    path = write(state)
    plain = path.with_name("checkpoint_8")
    (plain / "state").mkdir(parents=True)
    words: dict[str, object] = {}
    for name, array in state.items():
        dotted = name.replace("/", ".")
        words[name] = f"PLACEHOLDER://{dotted}"
        if name == "state/step":
            words[name] = array
            continue
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{plain}/state/{dotted}/"},
            "dtype": array.dtype.name,
            "metadata": {"shape": list(array.shape)},
        }
        ts.open(spec, create=True).result().write(array).result()
    (plain / "state/checkpoint").write_bytes(encodings.pack(nested(words)))
    same(state, dict(checkpoint.open_checkpoint(plain).read_all(state)))
    shutil.rmtree(plain / "state/target.encoder.encoder_norm.scale")
    with pytest.raises(UserError, match=r"target/encoder/encoder_norm/scale: missing"):
        checkpoint.open_checkpoint(plain).tree()


def test_an_index_builds_nothing_but_numbers() -> None:
    from kcmoe.checkpoint.storage import Damaged

    evil = [
        msgpack.ExtType(1, msgpack.packb(([1], "object", b"12345678"))),
        msgpack.ExtType(1, msgpack.packb(([10**9], "float32", b"1234"))),
        msgpack.ExtType(1, msgpack.packb(([-1], "float32", b"1234"))),
        msgpack.ExtType(2, b"1"),
        msgpack.ExtType(99, b"cos\nsystem"),
    ]
    for value in evil:
        with pytest.raises(Damaged, match="index checkpoint is damaged"):
            encodings.unpack(msgpack.packb({"a": value}), "checkpoint")


@pytest.mark.parametrize("case", ["packed_top2", "factored_unpacked"])
def test_t5x_checkpoints_hold_the_reference_state(
    case: str, reference: Path, same: Callable[..., None]
) -> None:
    described = json.loads((reference / case / "state_tree.json").read_text())
    after = np.load(reference / case / "trajectory.npz")
    found = {}
    for format in ("t5x_orbax", "t5x_legacy"):
        reader = checkpoint.open_checkpoint(next((reference / case / format).iterdir()))
        assert reader.format == format
        tree = reader.tree()
        assert {p: [list(leaf.shape), leaf.dtype.name] for p, leaf in tree.items()} == described
        found[format] = dict(reader.read_all(tree))
    same(found["t5x_orbax"], found["t5x_legacy"])
    for path in after.files:
        np.testing.assert_array_equal(found["t5x_orbax"][f"target/{path}"], after[path])


def test_our_files_say_what_t5x_writes(reference: Path, write: Callable[..., Path]) -> None:
    """Our indexes of T5X's own state equal T5X's, leaf for leaf."""
    theirs = reference / "packed_top2"
    old, new = (next((theirs / f).iterdir()) for f in ("t5x_legacy", "t5x_orbax"))
    reader = checkpoint.open_checkpoint(new)
    values = dict(reader.read_all(reader.tree()))
    ours = write(values, "t5x_legacy")
    unpacked = [encodings.unpack((p / "checkpoint").read_bytes(), "") for p in (ours, old)]
    assert str(unpacked[0]["version"]) == str(unpacked[1]["version"])
    mine, its = (flattened(u["optimizer"]) for u in unpacked)
    assert mine.keys() == its.keys()
    for path, value in its.items():
        np.testing.assert_array_equal(mine[path], value, err_msg=path)
    zarray = "target.encoder.layers_0.mlp.wi_0.kernel/.zarray"
    assert json.loads((ours / zarray).read_text()) == json.loads((old / zarray).read_text())
    ours = write(values, "t5x_orbax")
    for name in ("state/_METADATA", "state/array_metadatas/process_0"):
        mine, its = (json.loads((p / name).read_text()) for p in (ours, new))
        if "array_metadatas" in mine:
            assert sorted(map(str, mine["array_metadatas"])) == sorted(
                map(str, its["array_metadatas"])
            )
        else:
            assert mine == its
    names = {p.name for p in new.iterdir()} - {"dataset"}
    assert names <= {p.name for p in ours.iterdir()}
