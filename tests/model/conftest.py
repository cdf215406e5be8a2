# SPDX-License-Identifier: Apache-2.0
"""A toy model: 2 + 2 layers, the second of each sparse, 16 wide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe.config import gin_files
from kcmoe.config.model import ModelConfig
from kcmoe.model.interface import init_params

TOY = {
    "NUM_ENCODER_LAYERS": 2,
    "NUM_DECODER_LAYERS": 2,
    "NUM_ENCODER_SPARSE_LAYERS": 1,
    "NUM_DECODER_SPARSE_LAYERS": 1,
    "NUM_HEADS": 2,
    "HEAD_DIM": 8,
    "EMBED_DIM": 16,
    "MLP_DIM": 24,
    "NUM_EXPERTS": 4,
    "NUM_EMBEDDINGS": 64,
    "GROUP_SIZE": 32,
    "SCALE": 1.0,
    "ACTIVATION_DTYPE": "float32",
}


@pytest.fixture
def toy() -> Callable[..., ModelConfig]:
    """toy(ROUTING="dropless") -> the toy model's config with some macros changed."""

    def make(**changes: Any) -> ModelConfig:
        bindings = [f"{name}={value!r}" for name, value in {**TOY, **changes}.items()]
        files = ["configs/engine/engine.gin", "configs/sizes/base.gin"]
        return ModelConfig.from_macros(gin_files.parse(files, bindings))

    return make


@pytest.fixture
def params_of() -> Callable[[ModelConfig], dict[str, Any]]:
    """Parameters with routers far from uniform, so that routing decisions are not near ties."""

    def make(config: ModelConfig) -> dict[str, Any]:
        params = jax.jit(init_params, static_argnums=(0, 1))(config, 0)
        return {path: x * 50.0 if "router" in path else x for path, x in params.items()}

    return make


@pytest.fixture
def batch() -> dict[str, Any]:
    """Three rows of inputs up to 12 and targets up to 7 long, with padding."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(3, 64, (3, 12)).astype(np.int32)
    targets = rng.integers(3, 64, (3, 7)).astype(np.int32)
    for row, (n_inputs, n_targets) in enumerate([(12, 7), (5, 3), (8, 6)]):
        inputs[row, n_inputs:] = 0
        targets[row, n_targets:] = 0
    return {
        "encoder_input_tokens": jnp.asarray(inputs),
        "decoder_input_tokens": jnp.pad(jnp.asarray(targets)[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": jnp.asarray(targets),
    }
