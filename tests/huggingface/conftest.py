# SPDX-License-Identifier: Apache-2.0
"""Small models with random weights, as checkpoints and exported, and transformers where it is installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from kcmoe import checkpoint
from kcmoe.checkpoint import writing
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.inference.predict import LanguageModel
from kcmoe.training import state as states

# Nothing may be asked of the hub, whose client reads these when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

NEEDED = ("torch", "transformers", "tokenizers", "safetensors")
SPARSE: dict[str, Any] = {
    "NUM_ENCODER_LAYERS": 4,
    "NUM_DECODER_LAYERS": 2,
    "NUM_ENCODER_SPARSE_LAYERS": 2,
    "NUM_DECODER_SPARSE_LAYERS": 1,
    "NUM_HEADS": 2,
    "HEAD_DIM": 8,
    "EMBED_DIM": 24,
    "MLP_DIM": 40,
    "EXPERT_MLP_DIM": 32,
    "NUM_EXPERTS": 4,
    "SCALE": 1.0,
    "ACTIVATION_DTYPE": "float32",
    "MIXTURE_OR_TASK_NAME": "nsmc",
    "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 12},
    "PREDICT_TOKENS": 256,
}
DENSE = {**SPARSE, "NUM_ENCODER_SPARSE_LAYERS": 0, "NUM_DECODER_SPARSE_LAYERS": 0}
STEP = 7


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs torch and transformers where they are not there; their warnings are not ours."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    for item in items:
        if item.get_closest_marker("huggingface"):
            item.add_marker(pytest.mark.filterwarnings("default"))
            if missing:
                reason = f"{', '.join(missing)} not installed: pip install 'kcmoe[huggingface]'"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _quietly_on_one_thread(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["HF_MODULES_CACHE"] = str(tmp_path_factory.mktemp("modules"))
    if all(importlib.util.find_spec(name) for name in NEEDED):
        import torch

        torch.set_num_threads(1)


def make(folder: Path, settings: dict[str, Any], vocabulary: str | None = None) -> Path:
    """A checkpoint with random weights in a model directory `folder`; returns the checkpoint's folder."""
    files = ["configs/engine/engine.gin", "configs/sizes/tiny.gin"]
    extra = {} if vocabulary is None else {"VOCABULARY_FILE": vocabulary}
    lines = [f"{name} = {value!r}" for name, value in {**settings, **extra}.items()]
    macros = gin_files.parse(files, lines)
    folder.mkdir(parents=True)
    (folder / "config.gin").write_text(gin_files.dump(macros), encoding="utf-8")
    shapes = jax.eval_shape(lambda: states.init_params(ModelConfig.from_macros(macros), seed=0))
    rng = np.random.default_rng(1)
    flat: dict[str, np.ndarray] = {"state/step": np.asarray(STEP, np.int32)}
    for name, leaf in shapes.items():
        flat[f"target/{name}"] = _values(rng, name, leaf.shape)
    return checkpoint.save(folder, STEP, flat)


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Of a size that keeps activations near 1, where rounding is not blown up; routers are decided."""
    spread = {"scale": 0.1, "embedding": 1.0, "rel_embedding": 1.0}.get(name.rpartition("/")[2])
    if spread is None:
        spread = shape[-2] ** -0.5 * (3.0 if "router" in name else 0.6 if "query" in name else 1.0)
    values = rng.normal(name.endswith("scale"), spread, shape).astype(np.float32)
    if name == "decoder/logits_dense/kernel":
        values[:, 1] *= 3.0  # so that some answers end
    return values


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a checkpoint of the sparse model with other settings."""
    return lambda **settings: make(tmp_path_factory.mktemp("other") / "model", SPARSE | settings)


@pytest.fixture(scope="session")
def sparse_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("sparse") / "model", SPARSE)


@pytest.fixture(scope="session")
def dense_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("dense") / "model", DENSE)


@pytest.fixture(scope="session")
def sparse(sparse_checkpoint: Path) -> Path:
    """The sparse model exported; nothing in it may be changed."""
    return writing.convert(sparse_checkpoint, sparse_checkpoint.parent / "exported", "huggingface")


@pytest.fixture(scope="session")
def dense(dense_checkpoint: Path) -> Path:
    """Its dense twin exported."""
    return writing.convert(dense_checkpoint, dense_checkpoint.parent / "exported", "huggingface")


@pytest.fixture(scope="session")
def ours(sparse_checkpoint: Path) -> LanguageModel:
    return LanguageModel.load(sparse_checkpoint)


@pytest.fixture(scope="session")
def ours_dense(dense_checkpoint: Path) -> LanguageModel:
    return LanguageModel.load(dense_checkpoint)


@pytest.fixture(scope="session")
def old_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the published one's form: 18 pieces more, then 100 sentinels `▁<extra_id_N>`, last number first."""
    from sentencepiece import sentencepiece_model_pb2

    from kcmoe.io import resources

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(resources.find("vocab/kcmoe_32k.model").read_bytes())
    user_defined = type(proto.pieces[0]).USER_DEFINED
    for number in range(18):
        proto.pieces.add(piece=f"[추가{number}]", score=0.0, type=user_defined)
    for number in reversed(range(100)):
        proto.pieces.add(piece=f"▁<extra_id_{number}>", score=0.0, type=user_defined)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    path = tmp_path_factory.mktemp("vocabulary") / "old.model"
    path.write_bytes(proto.SerializeToString())
    return path
