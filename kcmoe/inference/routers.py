# SPDX-License-Identifier: Apache-2.0
"""What the routers of the encoder's sparse layers do with a batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kcmoe.model import routing
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.router_logits import by_row, caught


@functools.partial(jax.jit, static_argnames=("model",))
def router_logits(model: EncoderDecoder, params: Mapping[str, Any], ids: Array) -> tuple[Array]:
    """float32[L, B, S, E] of int32[B, S], where 0 is padding and L counts the sparse encoder layers."""
    found = caught(model, params, ids, method="encode").values()
    return (jnp.stack([by_row(model.config, ids.shape, layer) for layer in found]),)


@functools.partial(jax.jit, static_argnames=("model",))
def expert_places(
    model: EncoderDecoder, params: Mapping[str, Any], ids: Array
) -> tuple[Array, Array]:
    """The places that capacity routing gives to choices, the first is 0.

    Returns:
      int32[L, B, S, A], places at the experts chosen, best first, as if there were room for all.
      int32[3]: groups of the batch, tokens in each, and places that an expert has for each group.
    """
    config = dataclasses.replace(model.config, routing="capacity")
    limited = model.clone(config=config)
    found = [*caught(limited, params, ids, method="encode").values()]
    places = [routing.route(one, config.num_selected_experts).place_GxTxA for one in found]
    groups, tokens, experts = found[0].shape
    room = routing.expert_capacity(config.eval_expert_capacity_factor, tokens, experts)
    rows = jnp.stack([by_row(config, ids.shape, layer) for layer in places])
    return rows, jnp.array([groups, tokens, room], jnp.int32)
