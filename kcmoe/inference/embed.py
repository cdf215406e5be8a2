# SPDX-License-Identifier: Apache-2.0
"""One vector per text, from the encoder."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.tree import nested


@functools.partial(jax.jit, static_argnames=("model",))
def embed(model: EncoderDecoder, params: Mapping[str, Any], ids: Array) -> Array:
    """Mean of the encoder's output over the real tokens, EOS included: int32[B, S] -> float32[B, D]."""
    encoded = model.apply({"params": nested(params)}, ids, method="encode")
    real = (ids > 0).astype(jnp.float32)
    total = jnp.sum(encoded.astype(jnp.float32) * real[..., None], axis=1)
    return total / jnp.sum(real, axis=1, keepdims=True)
