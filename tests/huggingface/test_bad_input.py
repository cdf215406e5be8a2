# SPDX-License-Identifier: Apache-2.0
"""Every mistake is one line that says what is wrong, exit status 2, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kcmoe import cli
from kcmoe.checkpoint import safetensors
from kcmoe.io import resources

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a conversion that must fail with status 2, and returns its one line."""

    def run(source: Path, format: str = "huggingface", *options: str) -> str:
        out = tmp_path / "out"
        before = out.exists()
        status = cli.run(
            ["checkpoint", "convert", str(source), str(out), f"--format={format}", *options]
        )
        assert status == 2
        line = capsys.readouterr().err.strip()
        assert "\n" not in line, line
        assert out.exists() == before
        assert not list(tmp_path.glob("out*tmp*"))
        return line

    return run


@pytest.fixture
def copy(sparse: Path, tmp_path: Path) -> Path:
    """The exported folder, to be changed."""
    return shutil.copytree(sparse, tmp_path / "copy")


def change(folder: Path, **fields: Any) -> Path:
    """The folder with changed settings; a field that is None is taken away."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text("utf-8")), **fields}
    kept = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
    return folder


def test_without_a_config(sparse_checkpoint: Path, tmp_path: Path, refused: Refused) -> None:
    alone = shutil.copytree(sparse_checkpoint, tmp_path / "elsewhere/checkpoint_7")
    assert "no config.gin" in refused(alone)


def test_another_vocabulary(
    sparse_checkpoint: Path, old_vocabulary: Path, tmp_path: Path, refused: Refused
) -> None:
    assert "another vocabulary" in refused(
        *_recorded(sparse_checkpoint, tmp_path, "0" * 64), "huggingface"
    )
    line = refused(sparse_checkpoint, "huggingface", "--vocabulary=nowhere.model")
    assert "nowhere.model" in line


def _recorded(checkpoint: Path, tmp_path: Path, digest: str) -> tuple[Path]:
    copied = shutil.copytree(checkpoint, tmp_path / "other/checkpoint_7")
    config = (checkpoint.parent / "config.gin").read_text("utf-8")
    lines = [line for line in config.splitlines() if not line.startswith("VOCABULARY_SHA256")]
    lines.append(f"VOCABULARY_SHA256 = '{digest}'")
    (tmp_path / "other/config.gin").write_text("\n".join(lines), encoding="utf-8")
    return (copied,)


def test_a_folder_that_exists(sparse_checkpoint: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "out").mkdir()
    assert "exists already" in refused(sparse_checkpoint)


@pytest.mark.parametrize("fields", [{"model_type": "bert"}, {"kcmoe": None}])
def test_another_model(copy: Path, refused: Refused, fields: dict[str, Any]) -> None:
    assert "of another model" in refused(change(copy, **fields), "t5x_orbax")


def test_capacity_routing(copy: Path, refused: Refused) -> None:
    assert "dropless" in refused(change(copy, routing="capacity"), "t5x_orbax")


@pytest.mark.parametrize(
    "fields", [{"d_model": 32}, {"num_experts": 8}, {"num_layers": 2, "encoder_sparse_layers": [1]}]
)
def test_sizes_that_contradict_the_weights(
    copy: Path, refused: Refused, fields: dict[str, Any]
) -> None:
    line = refused(change(copy, **fields), "t5x_orbax")
    assert "contradicts the weights" in line or "no part of this model" in line


@pytest.mark.parametrize(
    "fields",
    [
        {"d_model": "24"},
        {"d_model": 0},
        {"encoder_sparse_layers": [0]},
        {"num_experts_per_tok": 0},
        {"num_experts_per_tok": 7},
        {"layer_norm_epsilon": 0.001},
        {"relative_attention_num_buckets": 16},
        {"relative_attention_max_distance": 64},
        {"pad_token_id": 3},
        {"eos_token_id": 2},
        {"decoder_start_token_id": 1},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_settings_that_make_no_sense(copy: Path, refused: Refused, fields: dict[str, Any]) -> None:
    assert f"config.json: {next(iter(fields))} is" in refused(change(copy, **fields), "t5x_orbax")


def test_a_classifier_is_no_damaged_model(copy: Path, refused: Refused) -> None:
    line = refused(change(copy, architectures=["KcMoeForSequenceClassification"]), "t5x_orbax")
    assert "is of KcMoeForSequenceClassification, of which text-to-text weights are only" in line


def test_without_its_settings(copy: Path, refused: Refused) -> None:
    (copy / "config.json").unlink()
    assert "without its config.json" in refused(copy, "t5x_orbax")


def test_another_vocabulary_where_no_digest_is_kept(
    sparse_checkpoint: Path, tmp_path: Path, refused: Refused
) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(resources.find("vocab/kcmoe_32k.100extra.model").read_bytes())
    del proto.pieces[9_000:30_000]
    small = tmp_path / "small.model"
    small.write_bytes(proto.SerializeToString())
    copied = shutil.copytree(sparse_checkpoint, tmp_path / "other/checkpoint_7")
    config = (sparse_checkpoint.parent / "config.gin").read_text("utf-8").splitlines()
    kept = [line for line in config if not line.startswith("VOCABULARY_")]
    (tmp_path / "other/config.gin").write_text("\n".join(kept), encoding="utf-8")
    line = refused(copied, "huggingface", f"--vocabulary={small}")
    assert "pieces, but the embedding of" in line


def test_a_missing_shard_is_named_once(copy: Path, refused: Refused) -> None:
    index = {"weight_map": dict.fromkeys(["a", "b", "lm_head.weight"], "model-1.safetensors")}
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    line = refused(copy, "t5x_orbax")
    assert line.count("model-1.safetensors is not there") == 1 and "and 2 more" in line


def test_missing_and_unknown_tensors_are_named(copy: Path, refused: Refused) -> None:
    _without(copy, "lm_head.weight", "classification_head.dense.weight")
    line = refused(copy, "t5x_orbax")
    assert "lm_head.weight: missing" in line
    assert "classification_head.dense.weight" in line and "no part of this model" in line


def _without(folder: Path, name: str, instead: str) -> None:
    """Renames a tensor in the header of the weights."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(f'"{name}"'.encode(), f'"{instead}"'.encode())
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


def test_weights_cut_off(copy: Path, refused: Refused) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "cut off" in refused(copy, "t5x_orbax")


def test_no_weights(copy: Path, refused: Refused) -> None:
    (copy / "model.safetensors").unlink()
    line = refused(copy, "t5x_orbax")
    assert "has no model.safetensors" in line and "lm_head" not in line


def test_an_adapter_alone(copy: Path, refused: Refused) -> None:
    (copy / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "merge_and_unload" in refused(copy, "t5x_orbax")


@pytest.mark.parametrize("content", ["{", "[" * 100_000])
def test_a_damaged_config(copy: Path, refused: Refused, content: str) -> None:
    (copy / "config.json").write_text(content, encoding="utf-8")
    assert "config.json is damaged" in refused(copy, "t5x_orbax")


def test_no_disk_space(
    sparse_checkpoint: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.TensorFile, "write", full)
    assert "no space left" in refused(sparse_checkpoint)
