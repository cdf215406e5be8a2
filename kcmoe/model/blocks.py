# SPDX-License-Identifier: Apache-2.0
"""One encoder layer and one decoder layer, dense or sparse.

Pre-norm residual layers as in Flaxformer (flaxformer@399ea3a:architectures/t5/t5_architecture.py and
architectures/moe/moe_architecture.py). A sparse layer has a MoE block where a dense one has its MLP, and
behind it an extra dense MLP (arXiv:2202.08906). What a norm returns at padding is zeroed before it is used.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh

from kcmoe.config.model import ModelConfig
from kcmoe.model import attention
from kcmoe.model.layers import MlpBlock, T5LayerNorm, dropout
from kcmoe.model.moe import MoeLayer

# Of one layer: self-attention keys and values so far, and keys and values of the encoder output.
Cache = dict[str, Any]


def norm(config: ModelConfig) -> T5LayerNorm:
    """The norm before every sublayer and after a stack."""
    return T5LayerNorm(jnp.dtype(config.activation_dtype))


def _attention(config: ModelConfig) -> attention.MultiHeadAttention:
    return attention.MultiHeadAttention(
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        dropout_rate=config.dropout_rate,
        scale=config.scale,
        dtype=jnp.dtype(config.activation_dtype),
        features=config.embed_dim,
    )


def _mlp(config: ModelConfig) -> MlpBlock:
    dtype = jnp.dtype(config.activation_dtype)
    return MlpBlock(config.mlp_dim, config.dropout_rate, config.scale, dtype)


class Layer(nn.Module):
    """What encoder and decoder layers share: residual steps and the MLP part."""

    config: ModelConfig
    sparse: bool
    platform: str  # of `MoeLayer`
    mesh: Mesh | None = None

    def _setup_mlp(self) -> None:
        self.pre_mlp_layer_norm = norm(self.config)
        self.mlp = (
            MoeLayer(self.config, self.platform, self.mesh) if self.sparse else _mlp(self.config)
        )
        if self.sparse:
            self.pre_extra_mlp_layer_norm = norm(self.config)
            self.extra_mlp = _mlp(self.config)

    def _residual(self, x: Array, update: Array, deterministic: bool) -> Array:
        return x + dropout(self, update, self.config.dropout_rate, deterministic)

    def _mlp_part(self, x: Array, real: Array, deterministic: bool) -> Array:
        update = self.mlp(real * self.pre_mlp_layer_norm(x), deterministic)
        x = self._residual(x, update, deterministic)
        if self.sparse:
            update = self.extra_mlp(real * self.pre_extra_mlp_layer_norm(x), deterministic)
            x = self._residual(x, update, deterministic)
        return x


class EncoderLayer(Layer):
    """Self-attention, then an MLP or a MoE block with an extra MLP."""

    def setup(self) -> None:
        self.pre_attention_layer_norm = norm(self.config)
        self.attention = _attention(self.config)
        self._setup_mlp()

    def __call__(
        self, x: Array, mask: Array, position_bias: Array, real: Array, deterministic: bool
    ) -> Array:
        """x: dtype[B, S, D]; mask: [B, 1, S, S]; position_bias: [1, H, S, S]; real: [B, S, 1]."""
        normed = real * self.pre_attention_layer_norm(x)
        update = self.attention(normed, None, mask, position_bias, deterministic)
        x = self._residual(x, update, deterministic)
        return self._mlp_part(x, real, deterministic)


class DecoderLayer(Layer):
    """Causal self-attention, cross-attention, then an MLP or a MoE block with an extra MLP."""

    def setup(self) -> None:
        self.pre_self_attention_layer_norm = norm(self.config)
        self.self_attention = _attention(self.config)
        self.pre_cross_attention_layer_norm = norm(self.config)
        self.encoder_decoder_attention = _attention(self.config)
        self._setup_mlp()

    def __call__(
        self,
        x: Array,
        encoded: Array,
        mask: Array,
        position_bias: Array,
        cross_mask: Array,
        real: Array,
        deterministic: bool,
    ) -> Array:
        """x: dtype[B, L, D]; encoded: [B, S, D]; masks: [B, 1, L, L or S]; position_bias: [1, H, L, L]."""
        normed = real * self.pre_self_attention_layer_norm(x)
        update = self.self_attention(normed, None, mask, position_bias, deterministic)
        x = self._residual(x, update, deterministic)
        normed = real * self.pre_cross_attention_layer_norm(x)
        update = self.encoder_decoder_attention(normed, encoded, cross_mask, None, deterministic)
        x = self._residual(x, update, deterministic)
        return self._mlp_part(x, real, deterministic)

    def start_cache(self, encoded: Array, sequences: int, length: int) -> Cache:
        """Empty self-attention caches for `sequences` sequences, and what cross-attention needs."""
        config = self.config
        empty = jnp.zeros((sequences, config.num_heads, length, config.head_dim), encoded.dtype)
        cross_key, cross_value = self.encoder_decoder_attention.keys_values(encoded)
        columns = jnp.swapaxes(cross_key, 2, 3)  # as the product of every step wants them
        return {"key": empty, "value": empty, "cross_key": columns, "cross_value": cross_value}

    def step(
        self,
        x: Array,
        cache: Cache,
        index: Array,
        mask: Array,
        position_bias: Array,
        cross_mask: Array,
    ) -> tuple[Array, Cache]:
        """One position: x: dtype[N, 1, D] -> dtype[N, 1, D] and the cache with position `index` filled."""
        normed = self.pre_self_attention_layer_norm(x)
        update, key, value = self.self_attention.step(
            normed, cache["key"], cache["value"], index, mask, position_bias
        )
        x = x + update
        normed = self.pre_cross_attention_layer_norm(x)
        x = x + self.encoder_decoder_attention.cross_step(
            normed, cache["cross_key"], cache["cross_value"], cross_mask
        )
        x = self._mlp_part(x, jnp.ones((), x.dtype), True)
        return x, {**cache, "key": key, "value": value}
