# SPDX-License-Identifier: Apache-2.0
"""What everyone who uses the model needs besides it: its parameters as a flat tree, and its features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kcmoe.config.model import ModelConfig
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.tree import flattened

Flat = dict[str, Any]  # path -> array or jax.ShapeDtypeStruct

HEAD = "decoder/logits_dense/kernel"  # float32[D, V]
# What a teacher says of each target position: its likeliest pieces, int32[B, L, K], and their probabilities.
TEACHER_IDS, TEACHER_PROBS = "teacher_ids", "teacher_probs"
_NOT_FOR_THE_MODEL = ("decoder_loss_weights", TEACHER_IDS, TEACHER_PROBS)


def init_params(config: ModelConfig, seed: int) -> Flat:
    """Fresh parameters: path -> float32 array. Under `jax.eval_shape` nothing is allocated."""
    ids = jnp.zeros((1, config.num_experts), jnp.int32)
    variables = EncoderDecoder(config).init(jax.random.key(seed), ids, ids, ids)
    return flattened(variables["params"])


def param_shapes(config: ModelConfig) -> Flat:
    """Shapes and dtypes of `init_params`, without allocating anything."""
    return jax.eval_shape(lambda: init_params(config, 0))


def features(batch: Mapping[str, Array]) -> dict[str, Array]:
    """The part of a batch that the model takes."""
    return {name: x for name, x in batch.items() if name not in _NOT_FOR_THE_MODEL}


def loss_weights(batch: Mapping[str, Array]) -> Array:
    """float32[B, L]: `decoder_loss_weights`, or 1 at every target that is no padding."""
    weights = batch.get("decoder_loss_weights")
    if weights is None:
        weights = batch["decoder_target_tokens"] > 0
    return weights.astype(jnp.float32)
