# SPDX-License-Identifier: Apache-2.0
"""Model FLOPs: the useful arithmetic of a step, the same for every engine and every dispatch.

One multiply-add is 2 FLOPs. Counted: the matrix products of attention, MLPs, router, experts and
output head, over every position of the batch, padding included. Not counted: moving tokens to
experts and back (however it is done), recomputation by REMAT, norms, softmax, losses, the
optimizer. Attention counts whole score matrices, causal and packed ones too. A training step is 3
forward passes, since the backward pass multiplies twice for each product of the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kcmoe.config.model import ModelConfig


def expert_slots_per_token(config: ModelConfig, *, train: bool) -> float:
    """Experts that really work on a token, on average at most.

    Top-k asks for k, but a capacity factor c leaves c slots per token: with 1.25 most second
    choices are never computed, and counting them would flatter the engine.
    """
    if config.routing == "dropless":
        return float(config.num_selected_experts)
    factor = config.train_expert_capacity_factor if train else config.eval_expert_capacity_factor
    return min(float(config.num_selected_experts), factor)


def forward_flops(
    config: ModelConfig, rows: int, inputs: int, targets: int, *, train: bool = True
) -> float:
    """FLOPs of one forward pass over `rows` x (`inputs` + `targets`) positions."""
    d, joined = config.embed_dim, config.num_heads * config.head_dim
    dense_mlp = 6 * d * config.mlp_dim  # three products: wi_0, wi_1, wo
    slots = expert_slots_per_token(config, train=train)
    moe = 2 * d * config.num_experts + slots * 6 * d * config.expert_mlp_dim

    def attention(queries: int, keys: int) -> int:
        projections = 2 * d * joined * (2 * queries + 2 * keys)  # query, out; key, value
        return projections + 4 * queries * keys * joined  # scores, and weights times values

    def mlps(layers: int, sparse: int) -> float:
        return (
            layers * dense_mlp + sparse * moe
        )  # a sparse layer keeps its dense MLP as `extra_mlp`

    encoder: float = config.num_encoder_layers * attention(inputs, inputs)
    encoder += inputs * mlps(config.num_encoder_layers, config.num_encoder_sparse_layers)
    decoder: float = config.num_decoder_layers * (
        attention(targets, targets) + attention(targets, inputs)
    )
    decoder += targets * mlps(config.num_decoder_layers, config.num_decoder_sparse_layers)
    head = targets * 2 * d * config.num_embeddings
    return float(rows * (encoder + decoder + head))


def train_step_flops(config: ModelConfig, rows: int, inputs: int, targets: int) -> float:
    """FLOPs of one training step: 3 forward passes."""
    return 3.0 * forward_flops(config, rows, inputs, targets, train=True)


def parameter_counts(config: ModelConfig, sizes: Mapping[str, Any]) -> tuple[int, int]:
    """(all parameters, those that one token meets) of a flat tree path -> shaped array.

    Active parameters leave out the experts that a token does not choose; embedding and head count
    whole.
    """
    total = sum(math.prod(leaf.shape) for leaf in sizes.values())
    experts = sum(math.prod(leaf.shape) for path, leaf in sizes.items() if "/expert/" in path)
    idle = experts * (config.num_experts - config.num_selected_experts) // config.num_experts
    return total, total - idle
