# SPDX-License-Identifier: Apache-2.0
"""The parts of Kc-MoE that T5 has not, for transformers: experts, the sparse block, padding kept at zero.

This file is copied beside the weights of an exported model.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation
from transformers.models.t5.modeling_t5 import T5Block, T5LayerFF, T5LayerNorm

from .configuration_kcmoe import KcMoeConfig
from .routing_kcmoe import KcMoeRouter, choose, tell

_real: ContextVar[Tensor | None] = ContextVar(
    "real", default=None
)  # bool[B, L, 1], of the running block


@use_experts_implementation
class KcMoeExperts(nn.Module):
    """E gated MLPs without biases: down(gelu(gate x) * up x)."""

    def __init__(self, config: KcMoeConfig):
        super().__init__()
        self.num_experts = config.num_experts
        self.hidden_dim = config.d_model
        self.intermediate_dim = config.moe_intermediate_size
        shape = config.num_experts, 2 * config.moe_intermediate_size, config.d_model
        self.gate_up_proj = nn.Parameter(torch.empty(shape))  # [E, 2F, D], the gate's F rows first
        self.down_proj = nn.Parameter(torch.empty(shape[0], shape[2], shape[1] // 2))
        self.act_fn = ACT2FN[config.dense_act_fn]
        self.dropout = nn.Dropout(config.expert_dropout_rate)

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.dropout(self.act_fn(gate) * up)

    def forward(self, x: Tensor, experts: Tensor, gates: Tensor) -> Tensor:
        """[N, D], int[N, A], float32[N, A] -> [N, D]; used with experts_implementation="eager"."""
        total = torch.zeros_like(x)
        for expert in experts.unique().tolist():
            token, choice = torch.where(experts == expert)
            hidden = self._apply_gate(F.linear(x[token], self.gate_up_proj[expert]))
            out = F.linear(hidden, self.down_proj[expert]) * gates[token, choice, None]
            total = total.index_add(0, token, out.to(total.dtype))
        return total


class KcMoeLayerNorm(T5LayerNorm):
    """T5's norm, zero at padding, so that padding is routed as in Kc-MoE: to the first experts."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x, real = super().forward(hidden_states), _real.get()
        return x if real is None else x * real.to(x.dtype)


class KcMoeLayerSparse(nn.Module):
    """Takes the place of T5LayerFF in a sparse block: experts, then the MLP that every block has."""

    def __init__(self, config: KcMoeConfig):
        super().__init__()
        self.is_decoder = config.is_decoder
        self.num_selected = config.num_experts_per_tok
        self.layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.router = KcMoeRouter(config)
        self.experts = KcMoeExperts(config)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.extra_mlp = T5LayerFF(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = self.layer_norm(hidden_states)
        rows = x.reshape(-1, x.shape[-1])
        logits = self.router(rows)
        tell(self.is_decoder, logits.view(*x.shape[:-1], -1))
        gates, experts = choose(logits.softmax(dim=-1), self.num_selected)
        x = self.experts(rows, experts, gates).view_as(x)
        return self.extra_mlp(hidden_states + self.dropout(x))


class KcMoeHead(nn.Linear):
    """The output head, in float32 whatever the dtype of the model."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> float32[..., V]."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float())


class KcMoeBlock(T5Block):
    """T5's block, with experts if it is sparse, told which positions are padding."""

    def __init__(self, config: KcMoeConfig, layer_idx: int, sparse: bool):
        super().__init__(config, has_relative_attention_bias=layer_idx == 0, layer_idx=layer_idx)
        if sparse:
            self.layer[-1] = KcMoeLayerSparse(config)
        for name, module in list(self.named_modules()):
            if name.endswith("layer_norm"):
                norm = KcMoeLayerNorm(config.d_model, eps=module.variance_epsilon)
                self.get_submodule(name.rpartition(".")[0]).layer_norm = norm

    def forward(
        self, *args: Any, real: Tensor | None = None, masked_rows: bool = False, **kwargs: Any
    ) -> Any:
        """T5's forward; real: bool[B, L, 1], None if there is no padding.

        `masked_rows` tells that some queries may see no key. Fused attention takes their gradient from a
        normaliser that -1e10 has rounded, so it is not used then.
        """
        fused = not (masked_rows and torch.is_grad_enabled())
        token = _real.set(real)
        try:
            with contextlib.nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
                return super().forward(*args, **kwargs)
        finally:
            _real.reset(token)
