# SPDX-License-Identifier: Apache-2.0
"""The whole model: T5.1.1 with some MLPs replaced by MoE blocks and an extra MLP behind each.

Parameter paths and numbers are Flaxformer's EncoderDecoder with SparseEncoder and SparseDecoder
(flaxformer@399ea3a:architectures/{t5/t5_architecture,moe/moe_architecture}.py, LayerLayout.MIXED), a public
interface guarded by a snapshot test. Differences: one module class per stack instead of factories; the
decoding cache is an explicit argument.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh

from kcmoe.config.model import ModelConfig
from kcmoe.model import attention, current_platform
from kcmoe.model.blocks import Cache, DecoderLayer, EncoderLayer, Layer, norm
from kcmoe.model.layers import Dense, Embed, dropout, kernel_init
from kcmoe.model.tpu import KEPT


class _Stack(nn.Module):
    """What encoder and decoder share: layers, position biases, embedding."""

    config: ModelConfig
    token_embedder: Embed
    platform: str
    mesh: Mesh | None

    def _setup_layers(self, kind: type[Layer], stack: Literal["encoder", "decoder"]) -> None:
        config = self.config
        sparse = config.sparse_layers(stack)
        count = getattr(config, f"num_{stack}_layers")
        self.layers = [kind(config, i in sparse, self.platform, self.mesh) for i in range(count)]
        self.relpos_bias = attention.RelativePositionBiases(
            config.num_heads, config.scale, jnp.dtype(config.activation_dtype)
        )

    def _through(self, layer: Layer, *arrays: Array, deterministic: bool) -> Array:
        """layer(*arrays); with REMAT its insides are computed again in the backward pass, on TPUs some."""

        def call(layer: Layer, *arrays: Array) -> Array:
            return layer(*arrays, deterministic=deterministic)

        if self.config.remat:
            call = nn.remat(call)
        elif self.platform == "tpu":
            call = nn.remat(call, policy=KEPT)
        return call(layer, *arrays)

    def _embed(self, ids: Array, deterministic: bool) -> Array:
        return dropout(self, self.token_embedder(ids), self.config.dropout_rate, deterministic)


class Encoder(_Stack):
    """Ids to vectors; padding comes out as zeros."""

    def setup(self) -> None:
        self._setup_layers(EncoderLayer, "encoder")
        self.encoder_norm = norm(self.config)

    def __call__(self, ids: Array, segment_ids: Array | None, deterministic: bool) -> Array:
        """ids: int32[B, S], 0 is padding; segment_ids: int32[B, S] when packed -> dtype[B, S, D]."""
        dtype = jnp.dtype(self.config.activation_dtype)
        allowed = attention.pair_mask(ids > 0, ids > 0)
        if segment_ids is not None:
            allowed &= attention.segment_mask(segment_ids, segment_ids)
        mask = attention.mask_bias(allowed, dtype)
        position_bias = self.relpos_bias(ids.shape[1], ids.shape[1], bidirectional=True)
        real = (ids > 0).astype(dtype)[..., None]
        x = self._embed(ids, deterministic)
        for layer in self.layers:
            x = self._through(layer, x, mask, position_bias, real, deterministic=deterministic)
        x = dropout(self, self.encoder_norm(x), self.config.dropout_rate, deterministic)
        return real * x


class Decoder(_Stack):
    """Target ids and encoder output to logits."""

    def setup(self) -> None:
        self._setup_layers(DecoderLayer, "decoder")
        self.decoder_norm = norm(self.config)
        init = kernel_init(self.config.scale, "truncated_normal")
        self.logits_dense = Dense(self.config.num_embeddings, jnp.dtype(jnp.float32), init)

    def __call__(
        self,
        encoded: Array,
        ids: Array,
        allowed: Array,
        cross_allowed: Array,
        deterministic: bool,
        logits: bool,
        positions: Array | None = None,
    ) -> Array:
        """ids: int32[B, L]; allowed: bool[B, L, L]; cross_allowed: bool[B, L, S] -> float32[B, L, V].

        Without `logits`, what they would be computed from: dtype[B, L, D]. `positions`: int32[L], where
        they are not 0, 1, 2, ….
        """
        dtype = jnp.dtype(self.config.activation_dtype)
        length = ids.shape[1]
        mask = attention.mask_bias(allowed, dtype)
        position_bias = self.relpos_bias(length, length, bidirectional=False)
        if positions is not None:
            position_bias = position_bias[:, :, positions[:, None], positions[None, :]]
        cross_mask = attention.mask_bias(cross_allowed, dtype)
        real = _real_decoder_positions(ids).astype(dtype)[..., None]
        x = self._embed(ids, deterministic)
        for layer in self.layers:
            x = self._through(
                layer,
                x,
                encoded,
                mask,
                position_bias,
                cross_mask,
                real,
                deterministic=deterministic,
            )
        x = dropout(self, self.decoder_norm(x), self.config.dropout_rate, deterministic)
        # Initialisation asks for logits, so that the head has parameters whoever applies it later.
        return self.logits_dense(real * x) if logits else real * x

    def start_cache(self, encoded: Array, beams: int, length: int) -> Cache:
        """Caches of all layers for B * beams sequences of up to `length` positions."""
        sequences = encoded.shape[0] * beams
        layers = {
            f"layers_{i}": layer.start_cache(encoded, sequences, length)
            for i, layer in enumerate(self.layers)
        }
        return {**layers, "position_bias": self.relpos_bias(length, length, bidirectional=False)}

    def step(
        self, cache: Cache, ids: Array, index: Array, encoder_real: Array
    ) -> tuple[Array, Cache]:
        """ids: int32[N], encoder_real: bool[B, S] -> float32[N, V] and the cache."""
        dtype = jnp.dtype(self.config.activation_dtype)
        position_bias = jax.lax.dynamic_slice_in_dim(cache["position_bias"], index, 1, axis=2)
        reached = jnp.arange(position_bias.shape[-1]) <= index
        mask = attention.mask_bias(reached[None, None, :], dtype)
        cross_mask = attention.mask_bias(encoder_real[:, None, :], dtype)
        x = self.token_embedder(ids[:, None])
        new_cache = dict(cache)
        for i, layer in enumerate(self.layers):
            name = f"layers_{i}"
            x, new_cache[name] = layer.step(x, cache[name], index, mask, position_bias, cross_mask)
        return self.logits_dense(self.decoder_norm(x)[:, 0]), new_cache


def _real_decoder_positions(ids: Array) -> Array:
    """bool[B, L]: ids, and the zero each sequence starts with; T5 has no begin-of-sequence id of its own.

    flaxformer@399ea3a:components/attention/dense_attention.py::get_decoder_logit_mask.
    """
    next_ids = jnp.pad(ids[:, 1:], ((0, 0), (0, 1)))
    first = jnp.arange(ids.shape[1]) == 0
    return (ids > 0) | (next_ids > 0) | first


class EncoderDecoder(nn.Module):
    """The model. `apply({"params": params}, **batch)` with T5X's feature names gives logits.

    Attributes:
      config: shape and routing.
      platform: what it is planned for ("cpu", "gpu", "tpu"); None is what this process computes on.
      mesh: the devices that share a batch, see `training.sharding`; None leaves the sharing to XLA.
    """

    config: ModelConfig
    platform: str | None = None
    mesh: Mesh | None = None

    def setup(self) -> None:
        config = self.config
        dtype = jnp.dtype(config.activation_dtype)
        platform = self.platform or current_platform()
        self.token_embedder = Embed(config.num_embeddings, config.embed_dim, dtype)
        self.encoder = Encoder(config, self.token_embedder, platform, self.mesh)
        self.decoder = Decoder(config, self.token_embedder, platform, self.mesh)

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
        logits: bool = True,
    ) -> Array:
        """Teacher-forced decoding of all positions at once -> float32[B, L, V]; see `Decoder`.

        With segment ids of the decoder alone, all its segments see the whole input.
        """
        targets, inputs = decoder_target_tokens > 0, encoder_input_tokens > 0
        positions = jnp.arange(decoder_target_tokens.shape[1])
        causal = positions[:, None] >= positions[None, :]
        allowed = attention.pair_mask(targets, targets) & causal
        cross_allowed = attention.pair_mask(targets, inputs)
        if decoder_segment_ids is not None:
            allowed &= attention.segment_mask(decoder_segment_ids, decoder_segment_ids)
        if decoder_segment_ids is not None and encoder_segment_ids is not None:
            cross_allowed &= attention.segment_mask(decoder_segment_ids, encoder_segment_ids)
        return self.decoder(
            encoded, decoder_input_tokens, allowed, cross_allowed, not enable_dropout, logits
        )

    def decode_tree(
        self,
        encoded: Array,
        encoder_input_tokens: Array,
        ids: Array,
        depths: Array,
        within: Array,
    ) -> Array:
        """Decoding of beginnings that share their own beginnings, before the output head.

        Args:
          encoded: dtype[B, S, D].
          encoder_input_tokens: int32[B, S].
          ids: int32[P], the last id of each beginning, the first one 0.
          depths: int32[P], its position.
          within: bool[P, P], which positions each one sees.

        Returns:
          dtype[B, P, D].
        """
        rows = (encoded.shape[0], ids.shape[0])
        cross_allowed = (encoder_input_tokens > 0)[:, None, :]
        return self.decoder(
            encoded,
            jnp.broadcast_to(ids, rows),
            within[None],
            cross_allowed,
            deterministic=True,
            logits=False,
            positions=depths,
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
        logits: bool = True,
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
          logits: False stops before the output head, for losses that compute it chunk by chunk.

        Returns:
          float32[B, L, V], or without `logits` dtype[B, L, D].
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
            logits=logits,
        )

    def start_cache(self, encoded: Array, beams: int, length: int) -> Cache:
        """Decoding cache for `beams` sequences per row of `encoded`, up to `length` positions."""
        return self.decoder.start_cache(encoded, beams, length)

    def step(
        self, cache: Cache, ids: Array, index: Array, encoder_input_tokens: Array
    ) -> tuple[Array, Cache]:
        """One decoding step: ids int32[B * beams] at position `index` -> float32[B * beams, V], cache."""
        return self.decoder.step(cache, ids, index, encoder_input_tokens > 0)
