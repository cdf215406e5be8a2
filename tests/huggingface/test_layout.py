# SPDX-License-Identifier: Apache-2.0
"""The layout of an exported folder, without torch: names, shapes, values, settings, shards, and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcmoe.checkpoint import safetensors, writing
from kcmoe.checkpoint.huggingface import folder as hf_folder
from kcmoe.checkpoint.huggingface import names
from kcmoe.checkpoint.reading import open_checkpoint

SIZES = {
    "NUM_ENCODER_LAYERS": 2,
    "NUM_DECODER_LAYERS": 1,
    "NUM_ENCODER_SPARSE_LAYERS": 1,
    "NUM_DECODER_SPARSE_LAYERS": 0,
    "NUM_HEADS": 3,
    "HEAD_DIM": 4,
    "EMBED_DIM": 8,
    "MLP_DIM": 10,
    "EXPERT_MLP_DIM": 6,
    "NUM_EXPERTS": 5,
    "NUM_EMBEDDINGS": 64,
}
# As transformers' state_dict of such a model, written down by hand.
ATTENTION = {"q": [12, 8], "k": [12, 8], "v": [12, 8], "o": [8, 12]}
MLP = {"wi_0": [10, 8], "wi_1": [10, 8], "wo": [8, 10]}
GOLDEN = {
    "shared.weight": [64, 8],
    "lm_head.weight": [64, 8],
    "encoder.final_layer_norm.weight": [8],
    "decoder.final_layer_norm.weight": [8],
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": [32, 3],
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": [32, 3],
    **{
        f"{block}.{name}.weight": shape
        for block in (
            "encoder.block.0.layer.0.SelfAttention",
            "encoder.block.1.layer.0.SelfAttention",
            "decoder.block.0.layer.0.SelfAttention",
            "decoder.block.0.layer.1.EncDecAttention",
        )
        for name, shape in ATTENTION.items()
    },
    **{
        f"{block}.DenseReluDense.{name}.weight": shape
        for block in (
            "encoder.block.0.layer.1",
            "encoder.block.1.layer.1.extra_mlp",
            "decoder.block.0.layer.2",
        )
        for name, shape in MLP.items()
    },
    **{
        f"{block}.layer_norm.weight": [8]
        for block in (
            "encoder.block.0.layer.0",
            "encoder.block.0.layer.1",
            "encoder.block.1.layer.0",
            "encoder.block.1.layer.1",
            "encoder.block.1.layer.1.extra_mlp",
            "decoder.block.0.layer.0",
            "decoder.block.0.layer.1",
            "decoder.block.0.layer.2",
        )
    },
    "encoder.block.1.layer.1.router.weight": [5, 8],
    "encoder.block.1.layer.1.experts.gate_up_proj": [5, 12, 8],
    "encoder.block.1.layer.1.experts.down_proj": [5, 8, 6],
}


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder, read as the format says."""
    found = {}
    for file in folder.glob("*.safetensors"):
        for name, (leaf, start) in safetensors.parse_header(file).items():
            values = np.fromfile(file, leaf.dtype, leaf.size, offset=start)
            found[name] = values.reshape(leaf.shape)
    return found


def test_names_and_shapes_are_transformers() -> None:
    shapes = names.layout(names.expected_parameters(SIZES))
    assert {name: list(shape) for name, shape in shapes.items()} == GOLDEN


def test_values_stand_where_transformers_looks(sparse: Path, sparse_checkpoint: Path) -> None:
    found, source = tensors(sparse), open_checkpoint(sparse_checkpoint)
    layer, block = "target/encoder/layers_1", "encoder.block.1.layer.1"
    up = [source.read(f"{layer}/mlp/expert/{name}/kernel") for name in ("wi_0", "wi_1")]
    for expert in range(4):
        joined = np.concatenate([kernel[expert].T for kernel in up])
        assert np.array_equal(found[f"{block}.experts.gate_up_proj"][expert], joined)
    down = source.read(f"{layer}/mlp/expert/wo/kernel").swapaxes(1, 2)
    assert np.array_equal(found[f"{block}.experts.down_proj"], down)
    head = source.read("target/decoder/logits_dense/kernel").T
    assert np.array_equal(found["lm_head.weight"], head)
    bias = source.read("target/decoder/relpos_bias/rel_embedding").T
    name = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert np.array_equal(found[name], bias)


def test_settings(sparse: Path, dense: Path) -> None:
    fields = json.loads((sparse / "config.json").read_text("utf-8"))
    assert fields["encoder_sparse_layers"] == [1, 3]
    assert fields["decoder_sparse_layers"] == [1]
    assert fields["tie_word_embeddings"] is False
    assert {name: fields[name] for name in ("d_model", "d_kv", "num_heads", "num_experts")} == {
        "d_model": 24,
        "d_kv": 8,
        "num_heads": 2,
        "num_experts": 4,
    }
    assert fields["decoder_layers"] == 2  # else transformers' caches count the encoder's
    generation = json.loads((sparse / "generation_config.json").read_text("utf-8"))
    assert generation["decoder_start_token_id"] == generation["pad_token_id"] == 0
    assert generation["max_new_tokens"] == 12
    fields = json.loads((dense / "config.json").read_text("utf-8"))
    assert fields["architectures"] == ["T5ForConditionalGeneration"]
    assert fields["feed_forward_proj"] == "gated-gelu"
    assert "auto_map" not in fields
    assert {path.name for path in dense.iterdir()} == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "custom_generate"),
    }


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_back_bit_for_bit_in_every_format(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(kind)
    source = open_checkpoint(request.getfixturevalue(f"{kind}_checkpoint"))
    for name in ("t5x_orbax", "t5x_legacy", "safetensors", "huggingface"):
        back = open_checkpoint(writing.convert(folder, tmp_path / name, name))
        parameters = {path for path in source.tree() if path.startswith("target/")}
        assert {path for path in back.tree() if path.startswith("target/")} == parameters
        assert back.step == 7
        for path in parameters:
            assert np.array_equal(back.read(path), source.read(path)), path


def test_shards_and_their_index(
    sparse: Path, sparse_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_folder, "SHARD_BYTES", 4_000_000)
    folder = writing.convert(sparse_checkpoint, tmp_path / "sharded", "huggingface")
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    files = sorted(set(index["weight_map"].values()))
    assert files == [path.name for path in sorted(folder.glob("*.safetensors"))]
    assert len(files) > 1 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    whole, parts = tensors(sparse), tensors(folder)
    assert whole.keys() == parts.keys() == index["weight_map"].keys()
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    assert not open_checkpoint(folder).scan()[1]
    (folder / files[-1]).unlink()
    missing = open_checkpoint(folder).scan()[1]
    assert missing.keys() == {n for n, file in index["weight_map"].items() if file == files[-1]}


def test_bfloat16(sparse_checkpoint: Path, tmp_path: Path) -> None:
    folder = writing.convert(sparse_checkpoint, tmp_path / "half", "huggingface", dtype="bfloat16")
    assert {array.dtype.name for array in tensors(folder).values()} == {"bfloat16"}
    # Read without a word about dtypes, it computes as ours does from the same weights: in float32.
    assert json.loads((folder / "config.json").read_text("utf-8"))["dtype"] == "float32"


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_model_that_computes_in_bfloat16(
    checkpoint_of: Callable[..., Path], tmp_path: Path, stored: str
) -> None:
    """Parameters in float32 are there to be trained on; otherwise bfloat16 is all there is."""
    source = checkpoint_of(ACTIVATION_DTYPE="bfloat16")
    folder = writing.convert(source, tmp_path / "out", "huggingface", dtype=stored)
    assert json.loads((folder / "config.json").read_text("utf-8"))["dtype"] == stored


def test_published_vocabulary_and_old_format(
    sparse_checkpoint: Path, tmp_path: Path, old_vocabulary: Path
) -> None:
    """The way of the published checkpoint: T5X's old format, and a vocabulary with T5X's own sentinels."""
    old = writing.convert(sparse_checkpoint, tmp_path / "old/checkpoint_7", "t5x_legacy")
    config = (sparse_checkpoint.parent / "config.gin").read_text("utf-8")
    lines = [line for line in config.splitlines() if not line.startswith("VOCABULARY_")]
    (tmp_path / "old/config.gin").write_text("\n".join(lines), encoding="utf-8")
    folder = writing.convert(old, tmp_path / "out", "huggingface", vocabulary=str(old_vocabulary))
    vocab = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    assert len(vocab) == 32_118
    assert vocab[-1][0] == "<extra_id_0>" and vocab[32_018][0] == "<extra_id_99>"
    assert np.array_equal(tensors(folder)["shared.weight"], tensors_of(sparse_checkpoint))


def tensors_of(checkpoint: Path) -> np.ndarray:
    return open_checkpoint(checkpoint).read("target/token_embedder/embedding")


def test_card_shows_scores_with_their_command(sparse_checkpoint: Path, tmp_path: Path) -> None:
    source = shutil.copytree(sparse_checkpoint.parent, tmp_path / "run") / "checkpoint_7"
    shutil.rmtree(tmp_path / "run/exported", ignore_errors=True)
    report: dict[str, Any] = {
        "task": "nsmc",
        "split": "test",
        "protocols": {"rank": {"metrics": {"accuracy": {"value": 0.9, "standard_error": 0.001}}}},
    }
    (tmp_path / "run/evaluation").mkdir()
    path = tmp_path / "run/evaluation/nsmc-test-checkpoint_7.json"
    path.write_text(json.dumps(report), encoding="utf-8")
    (path.parent / "other-test-checkpoint_7.json").write_text("no report", encoding="utf-8")
    folder = writing.convert(source, tmp_path / "out", "huggingface")
    card = (folder / "README.md").read_text("utf-8")
    assert card.count("| nsmc | test | accuracy (rank) | 90.00 ± 0.10 | `kcmoe evaluate ") == 2
    assert str(tmp_path) not in card and "$" not in card
    assert "[CC0 1.0](https://github.com/e9t/nsmc)" in card
