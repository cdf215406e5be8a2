# SPDX-License-Identifier: Apache-2.0
"""`kcmoe prune`: what stays is what was used, and a model without its unused experts answers the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kcmoe
from kcmoe import cli, tree
from kcmoe.checkpoint.reading import open_checkpoint
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.inference import loading
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.interface import init_params
from kcmoe.tools.prune import usage
from kcmoe.tools.prune.cut import after, cut

ROUTER = "layers_1/mlp/router/router_weights/w/kernel"


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    sizes = {
        **{"NUM_ENCODER_LAYERS": 2, "NUM_DECODER_LAYERS": 2, "NUM_HEADS": 2, "HEAD_DIM": 8},
        **{"EMBED_DIM": 16, "MLP_DIM": 32, "EXPERT_MLP_DIM": 24, "NUM_EMBEDDINGS": 64},
        **{"NUM_EXPERTS": 6, "ROUTING": "dropless", "DISPATCH": "einsum", "SCALE": 1.0},
    }
    files = ["configs/engine/engine.gin", "configs/sizes/tiny.gin"]
    return ModelConfig.from_macros(
        gin_files.parse(files, [f"{k} = {v!r}" for k, v in sizes.items()])
    )


@pytest.fixture(scope="module")
def params(config: ModelConfig) -> dict[str, np.ndarray]:
    """Fresh ones, but experts 1 and 4 have no probability: every token is far from them along one axis."""
    found = {path: np.array(x) for path, x in init_params(config, 0).items()}
    found["token_embedder/embedding"][:, 0] = 10.0
    for stack in ("encoder", "decoder"):
        kernel = found[f"{stack}/{ROUTER}"]
        kernel[0], kernel[:, [1, 4]] = 0.0, 0.0
        kernel[0, [1, 4]] = -1e4
    return found


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 64, (4, 12)).astype(np.int32)
    ids[:, 9:] = 0
    return {
        "encoder_input_tokens": ids,
        "decoder_input_tokens": np.roll(ids, 1, 1) * (np.arange(12) > 0),
        "decoder_target_tokens": ids,
    }


def logits(config: ModelConfig, params) -> jax.Array:
    variables = {"params": tree.nested(params)}
    return EncoderDecoder(config).apply(variables, **batch())


def pruned(params, experts):
    shapes = {path: tree.shape_dtype(x) for path, x in params.items()}
    return {name: cut(path, params[path], experts) for path, name, _ in after(shapes, experts)}


def test_usage_counts_the_chosen_of_real_tokens_alone(config, params) -> None:
    model = EncoderDecoder(config)
    shares = usage.measure(model, params, [batch(), batch()])
    assert set(shares) == {"encoder/layers_1", "decoder/layers_1"}
    more = {name: np.pad(x, ((0, 0), (0, 4))) for name, x in batch().items()}
    again = usage.measure(model, params, [more])
    for layer, share in shares.items():
        assert share.sum() == pytest.approx(1.0)
        np.testing.assert_allclose(again[layer], share, atol=1e-5)


def test_without_experts_that_nobody_chose_the_answers_are_the_same(config, params) -> None:
    shares = usage.measure(EncoderDecoder(config), params, [batch()])
    chosen = usage.most_used(shares, 4)
    for share in shares.values():
        assert share[[1, 4]].sum() == 0.0 < share[[0, 2, 3, 5]].min()
    for kept in chosen.values():
        np.testing.assert_array_equal(kept, [0, 2, 3, 5])
    smaller = dataclasses.replace(config, num_experts=4)
    got, expected = logits(smaller, pruned(params, chosen)), logits(config, params)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_dense_model_remains_where_no_expert_stays(config, params) -> None:
    none = {f"{stack}/layers_1": np.zeros(0, np.int64) for stack in ("encoder", "decoder")}
    dense = dataclasses.replace(config, num_encoder_sparse_layers=0, num_decoder_sparse_layers=0)
    left = pruned(params, none)
    assert {path: x.shape for path, x in left.items()} == {
        path: x.shape for path, x in init_params(dense, 0).items()
    }
    np.testing.assert_array_equal(
        left["encoder/layers_1/mlp/wo/kernel"], params["encoder/layers_1/extra_mlp/wo/kernel"]
    )
    assert jnp.isfinite(logits(dense, left)).all()


def test_the_verb_writes_a_model_that_is_used_like_any_other(tmp_path: Path, capsys) -> None:
    out = tmp_path / "dense"
    assert cli.run(["prune", "tiny", str(out), "--experts=0"]) == 0
    assert "10,095,616 parameters of 14,425,344" in capsys.readouterr().out
    whole, here = open_checkpoint("tiny").tree(), open_checkpoint(out).tree()
    assert here["target/decoder/layers_3/mlp/wo/kernel"].dtype.name == "bfloat16"
    assert len(here) < len(whole)
    lm = kcmoe.load(out)
    assert not lm.loaded.config.is_sparse
    assert not lm.unlearnt("nsmc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experts=16"], "fewer must stay"),
        (["--experts=-1"], "--experts"),
        (["--experts=4", "--task=nsmk"], "Did you mean nsmc"),
        (["--experts=4", "--task=apeach"], "no held-out rows"),
        (["--experts=4", "--format=zip"], "zip"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, capsys, arguments, message) -> None:
    out = tmp_path / "out"
    assert cli.run(["prune", "tiny", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("", [], "is empty"),
        ("file/out", [], "is a file where a folder is needed"),
        ("gs://b/out", [], "not on this machine"),
        ("out", ["--format=zip"], "unknown format 'zip'"),
        ("out", ["--task=nsmc", "--task=nsmk"], "Did you mean nsmc"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_computed(
    tmp_path: Path, capsys, monkeypatch, output, options, message
) -> None:
    def load(found):
        raise AssertionError("the model was read")

    monkeypatch.setattr(loading, "load", load)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert cli.run(["prune", "tiny", output, "--experts=8", *options]) == 2
    assert message in capsys.readouterr().err


def test_an_output_that_exists_is_refused(tmp_path: Path, capsys) -> None:
    assert cli.run(["prune", "tiny", str(tmp_path), "--experts=0"]) == 2
    assert "exists already" in capsys.readouterr().err
