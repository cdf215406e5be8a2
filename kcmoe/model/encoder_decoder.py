# SPDX-License-Identifier: Apache-2.0
"""The whole model: T5.1.1 with some MLPs replaced by MoE blocks and an extra MLP behind each.

Parameter paths and numbers are Flaxformer's EncoderDecoder with SparseEncoder and SparseDecoder
(flaxformer@399ea3a:architectures/{t5/t5_architecture,moe/moe_architecture}.py, LayerLayout.MIXED), a public
interface guarded by a snapshot test. Differences: one module class per stack instead of factories; the
decoding cache is an explicit argument.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from kcmoe.config import ModelConfig
from kcmoe.model import attention
from kcmoe.model.layers import Dense, Embed, MlpBlock, T5LayerNorm, dropout, kernel_init
from kcmoe.model.moe import MoeLayer

# Per decoder layer: self-attention keys and values so far, and the keys and values of the encoder output.
Cache = dict[str, Any]


def _norm(config: ModelConfig) -> T5LayerNorm:
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


class _Layer(nn.Module):
    """What encoder and decoder layers share: residual steps and the MLP part."""

    config: ModelConfig
    sparse: bool

    def _setup_mlp(self) -> None:
        self.pre_mlp_layer_norm = _norm(self.config)
        self.mlp = MoeLayer(self.config) if self.sparse else _mlp(self.config)
        if self.sparse:
            self.pre_extra_mlp_layer_norm = _norm(self.config)
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


class EncoderLayer(_Layer):
    """Self-attention, then an MLP or a MoE block with an extra MLP."""

    def setup(self) -> None:
        self.pre_attention_layer_norm = _norm(self.config)
        self.attention = _attention(self.config)
        self._setup_mlp()

    def __call__(self, x: Array, bias: Array, real: Array, deterministic: bool) -> Array:
        """x: dtype[B, S, D]; bias: dtype[B, H, S, S]; real: dtype[B, S, 1], 0 at padding."""
        normed = real * self.pre_attention_layer_norm(x)
        x = self._residual(x, self.attention(normed, normed, bias, deterministic), deterministic)
        return self._mlp_part(x, real, deterministic)


class DecoderLayer(_Layer):
    """Causal self-attention, cross-attention, then an MLP or a MoE block with an extra MLP."""

    def setup(self) -> None:
        self.pre_self_attention_layer_norm = _norm(self.config)
        self.self_attention = _attention(self.config)
        self.pre_cross_attention_layer_norm = _norm(self.config)
        self.encoder_decoder_attention = _attention(self.config)
        self._setup_mlp()

    def __call__(
        self, x: Array, encoded: Array, bias: Array, cross_bias: Array, real: Array, deterministic: bool
    ) -> Array:
        """x: dtype[B, L, D]; encoded: dtype[B, S, D]; bias, cross_bias: dtype[B, H or 1, L, L or S]."""
        normed = real * self.pre_self_attention_layer_norm(x)
        update = self.self_attention(normed, normed, bias, deterministic)
        x = self._residual(x, update, deterministic)
        normed = real * self.pre_cross_attention_layer_norm(x)
        update = self.encoder_decoder_attention(normed, encoded, cross_bias, deterministic)
        x = self._residual(x, update, deterministic)
        return self._mlp_part(x, real, deterministic)

    def start_cache(self, encoded: Array, sequences: int, length: int) -> Cache:
        """Empty self-attention caches for `sequences` sequences, and what cross-attention needs."""
        config = self.config
        empty = jnp.zeros((sequences, length, config.num_heads, config.head_dim), encoded.dtype)
        cross_key, cross_value = self.encoder_decoder_attention.keys_values(encoded)
        return {"key": empty, "value": empty, "cross_key": cross_key, "cross_value": cross_value}

    def step(
        self, x: Array, cache: Cache, index: Array, bias: Array, cross_bias: Array
    ) -> tuple[Array, Cache]:
        """One position: x: dtype[N, 1, D] -> dtype[N, 1, D] and the cache with position `index` filled."""
        normed = self.pre_self_attention_layer_norm(x)
        update, key, value = self.self_attention.step(
            normed, cache["key"], cache["value"], index, bias
        )
        x = x + update
        normed = self.pre_cross_attention_layer_norm(x)
        x = x + self.encoder_decoder_attention.cross_step(
            normed, cache["cross_key"], cache["cross_value"], cross_bias
        )
        x = self._mlp_part(x, jnp.ones((), x.dtype), True)
        return x, {**cache, "key": key, "value": value}


class _Stack(nn.Module):
    config: ModelConfig
    token_embedder: Embed

    def _setup_layers(self, kind: type[_Layer], stack: str, deterministic_arg: int) -> None:
        config = self.config
        sparse = config.sparse_layers(stack)  # type: ignore[arg-type]
        make = nn.remat(kind, static_argnums=(deterministic_arg,)) if config.remat else kind
        count = getattr(config, f"num_{stack}_layers")
        self.layers = [make(config, i in sparse) for i in range(count)]
        self.relpos_bias = attention.RelativePositionBiases(
            config.num_heads, config.scale, jnp.dtype(config.activation_dtype)
        )

    def _embed(self, ids: Array, deterministic: bool) -> Array:
        return dropout(self, self.token_embedder(ids), self.config.dropout_rate, deterministic)


class Encoder(_Stack):
    """Ids to vectors; padding comes out as zeros."""

    def setup(self) -> None:
        self._setup_layers(EncoderLayer, "encoder", 4)
        self.encoder_norm = _norm(self.config)

    def __call__(self, ids: Array, segment_ids: Array | None, deterministic: bool) -> Array:
        """ids: int32[B, S], 0 is padding; segment_ids: int32[B, S] when packed -> dtype[B, S, D]."""
        dtype = jnp.dtype(self.config.activation_dtype)
        allowed = attention.pair_mask(ids > 0, ids > 0)
        if segment_ids is not None:
            allowed &= attention.segment_mask(segment_ids, segment_ids)
        bias = attention.mask_bias(allowed, dtype)
        bias += self.relpos_bias(ids.shape[1], ids.shape[1], bidirectional=True)
        real = (ids > 0).astype(dtype)[..., None]
        x = self._embed(ids, deterministic)
        for layer in self.layers:
            x = layer(x, bias, real, deterministic)
        x = dropout(self, self.encoder_norm(x), self.config.dropout_rate, deterministic)
        return real * x


class Decoder(_Stack):
    """Target ids and encoder output to logits."""

    def setup(self) -> None:
        self._setup_layers(DecoderLayer, "decoder", 6)
        self.decoder_norm = _norm(self.config)
        init = kernel_init(self.config.scale, "truncated_normal")
        self.logits_dense = Dense(self.config.num_embeddings, jnp.dtype(jnp.float32), init)

    def __call__(
        self, encoded: Array, ids: Array, allowed: Array, cross_allowed: Array, deterministic: bool
    ) -> Array:
        """ids: int32[B, L]; allowed: bool[B, L, L]; cross_allowed: bool[B, L, S] -> float32[B, L, V]."""
        dtype = jnp.dtype(self.config.activation_dtype)
        length = ids.shape[1]
        bias = attention.mask_bias(allowed, dtype)
        bias += self.relpos_bias(length, length, bidirectional=False)
        cross_bias = attention.mask_bias(cross_allowed, dtype)
        real = _real_decoder_positions(ids).astype(dtype)[..., None]
        x = self._embed(ids, deterministic)
        for layer in self.layers:
            x = layer(x, encoded, bias, cross_bias, real, deterministic)
        x = dropout(self, self.decoder_norm(x), self.config.dropout_rate, deterministic)
        return self.logits_dense(real * x)

    def start_cache(self, encoded: Array, beams: int, length: int) -> Cache:
        """Caches of all layers for B * beams sequences of up to `length` positions."""
        sequences = encoded.shape[0] * beams
        layers = {
            f"layers_{i}": layer.start_cache(encoded, sequences, length)
            for i, layer in enumerate(self.layers)
        }
        return {**layers, "bias": self.relpos_bias(length, length, bidirectional=False)}

    def step(
        self, cache: Cache, ids: Array, index: Array, encoder_real: Array
    ) -> tuple[Array, Cache]:
        """ids: int32[N], encoder_real: bool[B, S] -> float32[N, V] and the cache."""
        dtype = jnp.dtype(self.config.activation_dtype)
        full = cache["bias"]
        later = jnp.arange(full.shape[-1]) > index
        bias = jnp.take(full, index, axis=2)[:, :, None, :]
        bias += jnp.where(later, attention.MASKED, 0.0).astype(dtype)
        cross_bias = attention.mask_bias(encoder_real[:, None, :], dtype)
        x = self.token_embedder(ids[:, None])
        new_cache = dict(cache)
        for i, layer in enumerate(self.layers):
            name = f"layers_{i}"
            x, new_cache[name] = layer.step(x, cache[name], index, bias, cross_bias)
        return self.logits_dense(self.decoder_norm(x)[:, 0]), new_cache


def _real_decoder_positions(ids: Array) -> Array:
    """bool[B, L]: ids, and the zero each sequence starts with; T5 has no begin-of-sequence id of its own.

    flaxformer@399ea3a:components/attention/dense_attention.py::get_decoder_logit_mask.
    """
    next_ids = jnp.pad(ids[:, 1:], ((0, 0), (0, 1)))
    first = jnp.arange(ids.shape[1]) == 0
    return (ids > 0) | (next_ids > 0) | first


class EncoderDecoder(nn.Module):
    """The model. `apply({"params": params}, **batch)` with T5X's feature names gives logits."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        dtype = jnp.dtype(config.activation_dtype)
        self.token_embedder = Embed(config.num_embeddings, config.embed_dim, dtype)
        self.encoder = Encoder(config, self.token_embedder)
        self.decoder = Decoder(config, self.token_embedder)

    def encode(
        self,
        encoder_input_tokens: Array,
        encoder_segment_ids: Array | None = None,
        *,
        enable_dropout: bool = False,
    ) -> Array:
        """int32[B, S] -> dtype[B, S, D]."""
        return self.encoder(encoder_input_tokens, encoder_segment_ids, not enable_dropout)

    def decode(
        self,
        encoded: Array,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        encoder_segment_ids: Array | None = None,
        decoder_segment_ids: Array | None = None,
        *,
        enable_dropout: bool = False,
    ) -> Array:
        """Teacher-forced decoding of all positions at once -> float32[B, L, V]."""
        targets, inputs = decoder_target_tokens > 0, encoder_input_tokens > 0
        positions = jnp.arange(decoder_target_tokens.shape[1])
        causal = positions[:, None] >= positions[None, :]
        allowed = attention.pair_mask(targets, targets) & causal
        cross_allowed = attention.pair_mask(targets, inputs)
        if decoder_segment_ids is not None and encoder_segment_ids is not None:
            allowed &= attention.segment_mask(decoder_segment_ids, decoder_segment_ids)
            cross_allowed &= attention.segment_mask(decoder_segment_ids, encoder_segment_ids)
        return self.decoder(
            encoded, decoder_input_tokens, allowed, cross_allowed, not enable_dropout
        )

    def __call__(
        self,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        encoder_segment_ids: Array | None = None,
        decoder_segment_ids: Array | None = None,
        encoder_positions: Array | None = None,
        decoder_positions: Array | None = None,
        *,
        enable_dropout: bool = False,
    ) -> Array:
        """Logits of a batch.

        Args:
          encoder_input_tokens: int32[B, S], 0 is padding.
          decoder_input_tokens: int32[B, L], the targets shifted right.
          decoder_target_tokens: int32[B, L], 0 is padding.
          encoder_segment_ids: int32[B, S], number of the packed example, 0 at padding.
          decoder_segment_ids: int32[B, L].
          encoder_positions: unused, as in Flaxformer: position biases are relative.
          decoder_positions: unused.
          enable_dropout: training; also selects the training capacity factor.

        Returns:
          float32[B, L, V].
        """
        del encoder_positions, decoder_positions
        encoded = self.encode(
            encoder_input_tokens, encoder_segment_ids, enable_dropout=enable_dropout
        )
        return self.decode(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            enable_dropout=enable_dropout,
        )

    def start_cache(self, encoded: Array, beams: int, length: int) -> Cache:
        """Decoding cache for `beams` sequences per row of `encoded`, up to `length` positions."""
        return self.decoder.start_cache(encoded, beams, length)

    def step(
        self, cache: Cache, ids: Array, index: Array, encoder_input_tokens: Array
    ) -> tuple[Array, Cache]:
        """One decoding step: ids int32[B * beams] at position `index` -> float32[B * beams, V], cache."""
        return self.decoder.step(cache, ids, index, encoder_input_tokens > 0)
