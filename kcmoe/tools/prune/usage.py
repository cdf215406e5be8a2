# SPDX-License-Identifier: Apache-2.0
"""How much each expert of a model is used, over the real tokens of some rows."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.interface import features
from kcmoe.model.router_logits import by_row, caught

# The tokens that a stack's routers see, and so the padding among them.
_TOKENS = {"encoder": "encoder_input_tokens", "decoder": "decoder_target_tokens"}


@functools.partial(jax.jit, static_argnames=("model",))
def gates(
    model: EncoderDecoder, params: Mapping[str, Any], batch: Mapping[str, Array]
) -> dict[str, Array]:
    """What each expert was given of the routers' trust in one batch.

    Args:
      model: routes as for inference.
      params: path -> array.
      batch: features [B, …].

    Returns:
      By layer ("encoder/layers_3") float32[E]: router probabilities of the chosen experts, summed over
      the real tokens.
    """
    config, found = model.config, {}
    logits = caught(model, params, **features(batch), logits=False)
    for layer, grouped in logits.items():
        real = batch[_TOKENS[layer.partition("/")[0]]] > 0
        probs = jax.nn.softmax(by_row(config, real.shape, grouped)).astype(jnp.float32)
        best, chosen = jax.lax.top_k(probs, config.num_selected_experts)
        shares = best * real[..., None].astype(jnp.float32)
        total = jnp.zeros((config.num_experts,)).at[chosen.reshape(-1)].add(shares.reshape(-1))
        found[layer] = total
    return found


def measure(
    model: EncoderDecoder, params: Mapping[str, Any], batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """By layer, the share of the routers' trust that each expert got over all batches, float64[E], sum 1."""
    totals: dict[str, np.ndarray] = {}
    for batch in batches:
        for layer, trust in jax.device_get(gates(model, params, batch)).items():
            totals[layer] = totals.get(layer, 0.0) + trust.astype(np.float64)
    return {layer: trust / max(trust.sum(), 1e-30) for layer, trust in totals.items()}


def most_used(usage: Mapping[str, np.ndarray], experts: int) -> dict[str, np.ndarray]:
    """By layer, the `experts` experts with the largest share, int64, in the order they stand in."""
    return {
        layer: np.sort(np.argsort(-share, kind="stable")[:experts])
        for layer, share in usage.items()
    }
