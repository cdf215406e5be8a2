# SPDX-License-Identifier: Apache-2.0
"""A 16-wide model with random weights and the shipped vocabulary, saved as a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

from kcmoe import checkpoint
from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.inference.predict import LanguageModel
from kcmoe.model.interface import param_shapes

MACROS: dict[str, Any] = {
    "NUM_ENCODER_LAYERS": 1,
    "NUM_DECODER_LAYERS": 1,
    "NUM_ENCODER_SPARSE_LAYERS": 1,
    "NUM_DECODER_SPARSE_LAYERS": 1,
    "NUM_HEADS": 2,
    "HEAD_DIM": 8,
    "EMBED_DIM": 16,
    "MLP_DIM": 32,
    "EXPERT_MLP_DIM": 32,
    "NUM_EXPERTS": 4,
    "SCALE": 1.0,
    "EVAL_EXPERT_CAPACITY_FACTOR": 1.0,  # so that capacity routing drops tokens and dropless shows
    "ACTIVATION_DTYPE": "float32",
    "MIXTURE_OR_TASK_NAME": "nsmc",
    "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 6},
    "PREDICT_TOKENS": 256,
}


def make_model_dir(folder: Path, steps: tuple[int, ...] = (7,), **changes: Any) -> Path:
    """A model directory with a checkpoint per step, each with weights of its own."""
    files = ["configs/engine/engine.gin", "configs/sizes/tiny.gin"]
    values = {**MACROS, **changes}
    macros = gin_files.parse(files, [f"{name} = {value!r}" for name, value in values.items()])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.gin").write_text(gin_files.dump(macros), encoding="utf-8")
    shapes = param_shapes(ModelConfig.from_macros(macros))
    for step in steps:
        rng = np.random.default_rng(step)
        flat = {
            f"target/{name}": rng.normal(0, 0.4, leaf.shape).astype(np.float32)
            for name, leaf in shapes.items()
        }
        checkpoint.save(folder, step, {**flat, "state/step": np.asarray(step, np.int32)})
    return folder


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture
def toy() -> ModuleType:
    """This module."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with checkpoint_7."""
    return make_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def model(model_dir: Path) -> LanguageModel:
    """checkpoint_7 in use."""
    return LanguageModel.load(model_dir / "checkpoint_7")
