# SPDX-License-Identifier: Apache-2.0
"""How much each expert of a model is used, over the real tokens of some rows."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kcmoe.model import routing
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.interface import features
from kcmoe.model.moe import Router
from kcmoe.tree import nested

# The tokens that a stack's routers see, and so the padding among them.
_TOKENS: Mapping[Literal["encoder", "decoder"], str] = {
    "encoder": "encoder_input_tokens",
    "decoder": "decoder_target_tokens",
}


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
    _, state = model.apply(
        {"params": nested(params)},
        **features(batch),
        logits=False,
        capture_intermediates=lambda module, _: isinstance(module, Router),
        mutable=["intermediates"],
    )
    config, found = model.config, {}
    copies = config.num_experts * config.num_expert_replicas
    for stack, name in _TOKENS.items():
        real = batch[name] > 0
        rows, length = routing.padded_shape(real.shape[0], real.shape[1], copies)
        for index in config.sparse_layers(stack):
            layer = f"layers_{index}"
            logits = state["intermediates"][stack][layer]["mlp"]["router"]["__call__"][0]
            probs = jax.nn.softmax(logits.reshape(rows, length, -1)).astype(jnp.float32)
            probs = probs[: real.shape[0], : real.shape[1]]
            best, chosen = jax.lax.top_k(probs, config.num_selected_experts)
            shares = best * real[..., None].astype(jnp.float32)
            total = jnp.zeros((config.num_experts,)).at[chosen.reshape(-1)].add(shares.reshape(-1))
            found[f"{stack}/{layer}"] = total
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
