# SPDX-License-Identifier: Apache-2.0
"""The MoE block: router, experts, and the report of what the router did.

Same numbers as Flaxformer's MoeLayer with its TokensChooseMaskedRouter (flaxformer@399ea3a:
architectures/moe/moe_layers.py) in `capacity` routing. `dropless` routing drops no token, so a token's
output depends on nothing else in the batch; it equals `capacity` wherever that would drop nothing.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh

from kcmoe.config.model import ModelConfig
from kcmoe.model import routing as routing_lib
from kcmoe.model.cpu.used_blocks import UsedBlocks, unpacked
from kcmoe.model.dispatch import Dispatch, Rows
from kcmoe.model.layers import Dense, Kernel, gated_gelu, kernel_init, product, scale_kept
from kcmoe.model.placing import placed
from kcmoe.model.tpu import kept


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
    """E gated MLPs without biases, as `layers.MlpBlock`, each over the rows of its own expert."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, rows: Rows | UsedBlocks, deterministic: bool) -> Array:
        """x: dtype[…, D] laid out as `rows` says -> the same shape."""
        config = self.config
        experts, width, hidden = config.num_experts, x.shape[-1], config.expert_mlp_dim
        dtype = jnp.dtype(config.moe_truncated_dtype)
        init = kernel_init(config.scale, "normal", experts=True)

        wi_0 = Kernel((experts, width, hidden), dtype, init, name="wi_0")()
        wi_1 = Kernel((experts, width, hidden), dtype, init, name="wi_1")()
        wo = Kernel((experts, hidden, width), dtype, init, name="wo")()
        x_in = x.astype(dtype)
        if isinstance(rows, UsedBlocks):
            return rows.through(_gated_mlp, x_in, wi_0, wi_1, wo).astype(x.dtype)
        wi_0, wi_1, wo = (unpacked(matrix).astype(dtype) for matrix in (wi_0, wi_1, wo))
        inner = gated_gelu(kept(rows.dot(x_in, wi_0)), kept(rows.dot(x_in, wi_1)))
        inner = self._dropout(inner, rows, deterministic)
        return kept(rows.dot(inner, wo)).astype(x.dtype)

    def _dropout(self, inner: Array, rows: Rows, deterministic: bool) -> Array:
        """Each expert drops features of its own, the same ones for all its rows, as T5's MLP does."""
        rate = self.config.expert_dropout_rate
        if deterministic or rate == 0.0:
            return inner
        shape = (self.config.num_experts, inner.shape[-1])
        keep_ExF = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, shape)
        return scale_kept(inner, rows.spread(keep_ExF), rate)


def _gated_mlp(x: Array, wi_0: Array, wi_1: Array, wo: Array) -> Array:
    wi_0, wi_1, wo = map(unpacked, (wi_0, wi_1, wo))
    return product(gated_gelu(product(x, wi_0), product(x, wi_1)), wo)


class MoeLayer(nn.Module):
    """Routes each token to its experts and adds up what they return, weighted by the router.

    Attributes:
      config: the model's.
      platform: what it computes on, or is planned for ("cpu", "gpu", "tpu"); DISPATCH = 'auto' goes by it.
      mesh: the devices that share a batch, see `training.sharding`; None leaves the sharing to XLA.
    """

    config: ModelConfig
    platform: str
    mesh: Mesh | None = None

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
        dispatch = Dispatch.of(
            config, tokens, train=not deterministic, platform=self.platform, mesh=self.mesh
        )
        x_GxTxD = placed(padded.reshape(dispatch.groups, -1, width), self.mesh, "rows")
        logits_GxTxE = Router(config.num_experts, name="router")(x_GxTxD)
        routing = routing_lib.route(
            logits_GxTxE, config.num_selected_experts, by_halves=dispatch.way == "used"
        )
        experts: nn.Module = Experts(config, name="expert")
        y_GxTxD = dispatch(
            x_GxTxD, routing, functools.partial(experts, deterministic=deterministic)
        )
        self._report(routing, dispatch.capacity, logits_GxTxE)
        return y_GxTxD.reshape(padded.shape)[:batch, :length]

    def _report(self, routing: routing_lib.Routing, capacity: int, logits_GxTxE: Array) -> None:
        """Flaxformer's five metrics, and the ones it lacks: who is overloaded, and what was dropped.

        `fraction_tokens_left_behind` counts tokens that lost all their experts, so it stays near zero
        while a third of the second choices are dropped; hence the last two.
        """
        groups, _, experts = logits_GxTxE.shape
        kept_GxTxA = (routing.place_GxTxA < capacity).astype(jnp.float32)
        num_kept = jnp.sum(kept_GxTxA)
        chosen_GxTxAxE = jax.nn.one_hot(routing.expert_GxTxA, experts, dtype=jnp.float32)
        entropy_GxT = -jnp.sum(routing.probs_GxTxE * jax.nn.log_softmax(logits_GxTxE), axis=-1)
        later_GxTxA = kept_GxTxA[..., 1:]
        report = {
            "auxiliary_loss": routing.auxiliary_loss,
            "router_z_loss": routing.router_z_loss,
            "fraction_tokens_left_behind": 1.0 - jnp.mean(jnp.max(kept_GxTxA, axis=-1)),
            "router_confidence": jnp.sum(routing.gate_GxTxA * kept_GxTxA) / num_kept,
            "expert_usage": num_kept / (experts * capacity * groups),
            "expert_load": jnp.mean(chosen_GxTxAxE, axis=(0, 1, 2)),
            "router_entropy": jnp.mean(entropy_GxT),
            "first_choice_dropped": 1.0 - jnp.mean(kept_GxTxA[..., 0]),
            "second_choice_dropped": (
                1.0 - jnp.mean(later_GxTxA) if later_GxTxA.size else jnp.zeros(())
            ),
        }
        for name, value in report.items():
            self.sow(
                "intermediates", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None
            )
