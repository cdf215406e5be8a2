# SPDX-License-Identifier: Apache-2.0
"""The MoE block: router, experts, and the report of what the router did.

Same numbers as Flaxformer's MoeLayer with its TokensChooseMaskedRouter (flaxformer@399ea3a:
architectures/moe/moe_layers.py) in `capacity` routing. `dropless` routing drops no token, so a token's
output depends on nothing else in the batch; it equals `capacity` wherever that would drop nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from kcmoe.config.model import ModelConfig
from kcmoe.model import dispatch as dispatch_lib
from kcmoe.model import routing as routing_lib
from kcmoe.model.dispatch_choice import grouped_block, resolve
from kcmoe.model.layers import Dense, Kernel, dropout, gated_gelu, kernel_init


class RouterWeights(nn.Module):
    """Router logits in float32 whatever the activations are (arXiv:2101.03961, selective precision)."""

    num_experts: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.normal(2e-2)
        return Dense(self.num_experts, jnp.dtype(jnp.float32), init, name="w")(x)


class Router(nn.Module):
    """Exists for its name: Flaxformer's path is router/router_weights/w/kernel."""

    num_experts: int

    @nn.compact
    def __call__(self, x_GxTxD: Array) -> Array:
        """float[G, T, D] -> float32[G, T, E]."""
        return RouterWeights(self.num_experts, name="router_weights")(x_GxTxD)


class Experts(nn.Module):
    """E gated MLPs without biases, as `layers.MlpBlock`, over rows already sorted by expert."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, slots: dispatch_lib.Slots | None, deterministic: bool) -> Array:
        """x: dtype[E, M/E, D], or with `slots` dtype[M, D] in blocks of one expert each -> same shape."""
        config = self.config
        experts, width, hidden = config.num_experts, x.shape[-1], config.expert_mlp_dim
        dtype = jnp.dtype(config.moe_truncated_dtype)

        init = kernel_init(config.scale, "normal", experts=True)

        def multiply(rows: Array, kernel: Array) -> Array:
            if slots is None:
                return jnp.einsum("emd,edf->emf", rows, kernel)
            if slots.block == 1:
                return dispatch_lib.ragged_dot(rows, kernel, slots)
            return dispatch_lib.grouped_dot(rows, kernel, slots)

        wi_0 = Kernel((experts, width, hidden), dtype, init, name="wi_0")()
        wi_1 = Kernel((experts, width, hidden), dtype, init, name="wi_1")()
        wo = Kernel((experts, hidden, width), dtype, init, name="wo")()
        rows = x.astype(dtype)
        inner = gated_gelu(multiply(rows, wi_0), multiply(rows, wi_1))
        inner = self._dropout(inner, slots, deterministic)
        return multiply(inner, wo).astype(x.dtype)

    def _dropout(
        self, inner: Array, slots: dispatch_lib.Slots | None, deterministic: bool
    ) -> Array:
        """Each expert drops features of its own, the same ones for all its rows, as T5's MLP does."""
        rate = self.config.expert_dropout_rate
        if slots is None:
            return dropout(self, inner, rate, deterministic)
        ones = jnp.ones((self.config.num_experts, inner.shape[-1]), inner.dtype)
        per_expert = dropout(self, ones, rate, deterministic, broadcast=())
        return inner * jnp.repeat(per_expert[slots.experts_of_blocks], slots.block, axis=0)


def layout(config: ModelConfig, tokens: int, *, train: bool) -> tuple[int, int, str]:
    """(groups, slots per expert and group, dispatch) of a layer with `tokens` tokens on this device."""
    experts = config.num_experts
    copies = experts * config.num_expert_replicas
    groups = routing_lib.num_groups(tokens, config.group_size, copies)
    factor = config.train_expert_capacity_factor if train else config.eval_expert_capacity_factor
    capacity = routing_lib.expert_capacity(factor, tokens // groups, experts)
    if config.routing == "dropless":
        capacity = tokens // groups  # a token chooses an expert at most once
    how = resolve(
        config.dispatch,
        config.routing,
        tokens,
        slots=experts * groups * capacity,
        choices=tokens * config.num_selected_experts,
        experts=experts,
        platform=jax.default_backend(),
    )
    return groups, capacity, how


class MoeLayer(nn.Module):
    """Routes each token to its experts and adds up what they return, weighted by the router."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        """x: dtype[B, L, D] -> dtype[B, L, D]. Sows the router's report into "intermediates"."""
        config = self.config
        batch, length, width = x.shape
        copies = config.num_experts * config.num_expert_replicas
        padded_batch, padded_length = routing_lib.padded_shape(batch, length, copies)
        padding = ((0, padded_batch - batch), (0, padded_length - length), (0, 0))
        padded = jnp.pad(x, padding) if (padded_batch, padded_length) != (batch, length) else x

        tokens = padded_batch * padded_length
        groups, capacity, how = layout(config, tokens, train=not deterministic)
        x_GxTxD = padded.reshape(groups, tokens // groups, width)
        logits = Router(config.num_experts, name="router")(x_GxTxD)
        routing = routing_lib.route(logits, config.num_selected_experts)
        y = self._through_experts(how, x_GxTxD, routing, capacity, deterministic)
        self._report(routing, capacity, logits)
        return y.reshape(padded.shape)[:batch, :length]

    def _through_experts(
        self,
        how: str,
        x_GxTxD: Array,
        routing: routing_lib.Routing,
        capacity: int,
        deterministic: bool,
    ) -> Array:
        """-> dtype[N, D], whatever way the tokens travel."""
        config = self.config
        experts = Experts(config, name="expert")
        x_NxD = x_GxTxD.reshape(-1, x_GxTxD.shape[-1])
        if how == "einsum":
            dispatch_mask, combine = dispatch_lib.masks(routing, config.num_experts, capacity)
            expert_in = jnp.einsum("gtd,gtec->egcd", x_GxTxD, dispatch_mask.astype(x_GxTxD.dtype))
            out = experts(
                expert_in.reshape(config.num_experts, -1, x_NxD.shape[1]), None, deterministic
            )
            y = jnp.einsum(
                "egcd,gtec->gtd", out.reshape(expert_in.shape), combine.astype(out.dtype)
            )
            return y.reshape(x_NxD.shape)

        gate_NxA = routing.gate_GxTxA.reshape(x_NxD.shape[0], -1)
        if how in ("grouped", "ragged"):
            expert_NxA = routing.expert_GxTxA.reshape(gate_NxA.shape)
            kept_NxA = (routing.place_GxTxA < capacity).reshape(gate_NxA.shape)
            block = 1 if how == "ragged" else grouped_block(gate_NxA.size, config.num_experts)
            slots = dispatch_lib.grouped_slots(expert_NxA, kept_NxA, config.num_experts, block)
            y_MxD = experts(dispatch_lib.to_slots(x_NxD, slots), slots, deterministic)
        else:
            slots = dispatch_lib.capacity_slots(routing, config.num_experts, capacity)
            rows = dispatch_lib.to_slots(x_NxD, slots)
            y = experts(rows.reshape(config.num_experts, -1, rows.shape[1]), None, deterministic)
            y_MxD = y.reshape(rows.shape)
        return dispatch_lib.from_slots(y_MxD, gate_NxA, slots)

    def _report(self, routing: routing_lib.Routing, capacity: int, logits_GxTxE: Array) -> None:
        """Flaxformer's five metrics, and the ones it lacks: who is overloaded, and what was dropped.

        `fraction_tokens_left_behind` counts tokens that lost all their experts, so it stays near zero
        while a third of the second choices are dropped; hence the last two.
        """
        groups, _, experts = logits_GxTxE.shape
        kept_GxTxA = (routing.place_GxTxA < capacity).astype(jnp.float32)
        num_kept = jnp.sum(kept_GxTxA)
        chosen = jax.nn.one_hot(routing.expert_GxTxA, experts, dtype=jnp.float32)
        entropy = -jnp.sum(routing.probs_GxTxE * jax.nn.log_softmax(logits_GxTxE), axis=-1)
        later = kept_GxTxA[..., 1:]
        report = {
            "auxiliary_loss": routing.auxiliary_loss,
            "router_z_loss": routing.router_z_loss,
            "fraction_tokens_left_behind": 1.0 - jnp.mean(jnp.max(kept_GxTxA, axis=-1)),
            "router_confidence": jnp.sum(routing.gate_GxTxA * kept_GxTxA) / num_kept,
            "expert_usage": num_kept / (experts * capacity * groups),
            "expert_load": jnp.mean(chosen, axis=(0, 1, 2)),
            "router_entropy": jnp.mean(entropy),
            "first_choice_dropped": 1.0 - jnp.mean(kept_GxTxA[..., 0]),
            "second_choice_dropped": 1.0 - jnp.mean(later) if later.size else jnp.zeros(()),
        }
        for name, value in report.items():
            self.sow(
                "intermediates", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None
            )
