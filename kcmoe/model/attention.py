# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention with T5's relative position bias, and its masks.

The numbers are Flaxformer's (flaxformer@399ea3a:components/attention/dense_attention.py and
components/relative_position_biases.py): logits are not divided by sqrt(K), which is folded into the
initial query kernel instead; masked logits get -1e10 added, so a fully masked row is uniform.
Differences: cached decoding takes and returns its cache explicitly, see `SelfAttention.step`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from kcmoe.model.layers import Dense, dropout, kernel_init

MASKED = -1e10


def mask_bias(allowed: Array, dtype: jnp.dtype) -> Array:
    """bool[B, Q, K] -> dtype[B, 1, Q, K]: 0 where attention is allowed, -1e10 elsewhere."""
    return jnp.where(allowed, 0.0, MASKED).astype(dtype)[:, None]


def pair_mask(queries: Array, keys: Array) -> Array:
    """bool[B, Q], bool[B, K] -> bool[B, Q, K]: both positions are real."""
    return queries[:, :, None] & keys[:, None, :]


def segment_mask(query_segments: Array, key_segments: Array) -> Array:
    """int32[B, Q], int32[B, K] -> bool[B, Q, K]: both positions are of one packed example."""
    return query_segments[:, :, None] == key_segments[:, None, :]


def relative_position_buckets(
    queries: int, keys: int, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
) -> np.ndarray:
    """Buckets of key position minus query position: exact when near, logarithmic when far.

    Mesh TensorFlow's function as in flaxformer@399ea3a:components/relative_position_biases.py; computed
    with NumPy in float32, because the bucket edges depend on its rounding.

    Returns:
      int32[queries, keys] in [0, num_buckets).
    """
    distance = np.arange(queries, dtype=np.int32)[:, None] - np.arange(keys, dtype=np.int32)[None, :]
    offset = np.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = (distance < 0).astype(np.int32) * num_buckets
        distance = np.abs(distance)
    else:
        distance = np.maximum(distance, 0)
    exact = num_buckets // 2
    ratio = distance.astype(np.float32) / exact + np.finfo(np.float32).eps
    far = exact + (np.log(ratio) / np.log(max_distance / exact) * (num_buckets - exact)).astype(
        np.int32
    )
    return offset + np.where(distance < exact, distance, np.minimum(far, num_buckets - 1))


class RelativePositionBiases(nn.Module):
    """One learned scalar per head and bucket, shared by all layers of a stack."""

    num_heads: int
    scale: float
    dtype: jnp.dtype
    num_buckets: int = 32

    def setup(self) -> None:
        init = nn.initializers.variance_scaling(self.scale, "fan_avg", "uniform")
        shape = (self.num_heads, self.num_buckets)
        self.rel_embedding = self.param("rel_embedding", init, shape, jnp.float32)

    def __call__(self, queries: int, keys: int, bidirectional: bool) -> Array:
        """-> dtype[1, H, queries, keys]."""
        buckets = relative_position_buckets(queries, keys, bidirectional, self.num_buckets)
        table = self.rel_embedding.astype(self.dtype)
        # A product with a constant one-hot matrix: its gradient is a product too, not a scatter.
        one_hot = jnp.asarray(np.eye(self.num_buckets, dtype=np.float32)[buckets.reshape(-1)].T)
        bias = jnp.dot(table, one_hot.astype(self.dtype), precision=jax.lax.Precision.HIGHEST)
        return bias.reshape(1, self.num_heads, queries, keys)


class MultiHeadAttention(nn.Module):
    """Projections and attention; used for self- and cross-attention.

    Kernels: query, key, value float32[D, H*K]; out float32[H*K, D].
    """

    num_heads: int
    head_dim: int
    dropout_rate: float
    scale: float
    dtype: jnp.dtype
    features: int

    def setup(self) -> None:
        init = kernel_init(self.scale, "normal")

        def query_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
            return init(key, shape, dtype) / np.sqrt(self.head_dim).astype(np.float32)

        joined = self.num_heads * self.head_dim
        self.query = Dense(joined, self.dtype, query_init)
        self.key = Dense(joined, self.dtype, init)
        self.value = Dense(joined, self.dtype, init)
        self.out = Dense(self.features, self.dtype, init)

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)

    def keys_values(self, x: Array) -> tuple[Array, Array]:
        """x: dtype[B, S, D] -> keys and values, each dtype[B, S, H, K]."""
        return self._heads(self.key(x)), self._heads(self.value(x))

    def attend(
        self, query_BxQxHxK: Array, key: Array, value: Array, bias: Array, deterministic: bool
    ) -> Array:
        """softmax(query key^T + bias) value, then the output projection.

        Args:
          query_BxQxHxK: projected queries.
          key: projected keys, [B, S, H, K].
          value: projected values, [B, S, H, K].
          bias: broadcastable to [B, H, Q, S].
          deterministic: no dropout.

        Returns:
          dtype[B, Q, D].
        """
        logits = jnp.einsum("bqhk,bshk->bhqs", query_BxQxHxK, key) + bias.astype(self.dtype)
        weights = jax.nn.softmax(logits).astype(self.dtype)
        weights = dropout(self, weights, self.dropout_rate, deterministic)
        mixed = jnp.einsum("bhqs,bshk->bqhk", weights, value)
        return self.out(mixed.reshape(*mixed.shape[:2], -1))

    def __call__(self, x: Array, memory: Array, bias: Array, deterministic: bool) -> Array:
        """x: dtype[B, Q, D], memory: dtype[B, S, D], bias: [B or 1, H or 1, Q, S] -> dtype[B, Q, D]."""
        key, value = self.keys_values(memory)
        return self.attend(self._heads(self.query(x)), key, value, bias, deterministic)

    def step(
        self, x: Array, key_cache: Array, value_cache: Array, index: Array, bias: Array
    ) -> tuple[Array, Array, Array]:
        """One position of causal self-attention.

        Args:
          x: dtype[N, 1, D], the newest position of N running sequences.
          key_cache: dtype[N, L, H, K]; positions >= `index` are still unused.
          value_cache: as `key_cache`.
          index: int32 scalar, the position of `x`.
          bias: dtype[1, H, 1, L], -1e10 at positions after `index`.

        Returns:
          dtype[N, 1, D] and the two caches with position `index` filled.
        """
        key, value = self.keys_values(x)
        key_cache = jax.lax.dynamic_update_slice_in_dim(key_cache, key, index, axis=1)
        value_cache = jax.lax.dynamic_update_slice_in_dim(value_cache, value, index, axis=1)
        query = self._heads(self.query(x))
        return self.attend(query, key_cache, value_cache, bias, True), key_cache, value_cache

    def cross_step(self, x: Array, key: Array, value: Array, bias: Array) -> Array:
        """One position of cross-attention; beams of one input share its keys and values.

        Args:
          x: dtype[B * beams, 1, D].
          key: dtype[B, S, H, K], from `keys_values` of the encoder output.
          value: dtype[B, S, H, K].
          bias: dtype[B, 1, 1, S], -1e10 at padding.

        Returns:
          dtype[B * beams, 1, D].
        """
        batch = key.shape[0]
        query = self._heads(self.query(x)).reshape(batch, -1, self.num_heads, self.head_dim)
        return self.attend(query, key, value, bias, True).reshape(x.shape)
