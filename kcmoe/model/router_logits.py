# SPDX-License-Identifier: Apache-2.0
"""The routers' logits, caught while a model runs; nothing in the model is there for this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from jax import Array

from kcmoe.config.model import ModelConfig
from kcmoe.model import routing
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.moe import Router
from kcmoe.tree import nested

Grouped = TypeVar("Grouped", Array, np.ndarray)


def caught(
    model: EncoderDecoder, params: Mapping[str, Any], *arguments: Array, **settings: Any
) -> dict[str, Array]:
    """The logits of every sparse layer that runs, encoder first.

    Args:
      model: routes as for inference.
      params: path -> array.
      arguments, settings: of `model.apply`; `method="encode"` runs the encoder alone.

    Returns:
      By layer ("encoder/layers_3") float32[G, T, E] as the layer groups its tokens.
    """
    _, state = model.apply(
        {"params": nested(params)},
        *arguments,
        capture_intermediates=lambda module, _: isinstance(module, Router),
        mutable=["intermediates"],
        **settings,
    )
    found = state["intermediates"]
    return {
        f"{stack}/layers_{i}": found[stack][f"layers_{i}"]["mlp"]["router"]["__call__"][0]
        for stack in ("encoder", "decoder")
        if stack in found
        for i in model.config.sparse_layers(stack)
    }


def by_row(config: ModelConfig, shape: tuple[int, ...], grouped: Grouped) -> Grouped:
    """[G, T, X] -> [B, S, X] for tokens [B, S] of `shape`, without what a layer added to fill its groups."""
    copies = config.num_experts * config.num_expert_replicas
    batch, length = routing.padded_shape(shape[0], shape[1], copies)
    return grouped.reshape(batch, length, -1)[: shape[0], : shape[1]]
