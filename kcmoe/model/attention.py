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

from kcmoe.model.cpu import gradients, halves
from kcmoe.model.cpu.gradients import with_gradient
from kcmoe.model.layers import Kernel, dropout, kernel_init, matmul

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
    distance = (
        np.arange(queries, dtype=np.int32)[:, None] - np.arange(keys, dtype=np.int32)[None, :]
    )
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


@with_gradient(
    gradients.softmax_attention_forward, gradients.softmax_attention_backward, value_of_forward=True
)
def softmax_attention(
    query: Array, key: Array, value: Array, mask: Array, position_bias: Array | None
) -> Array:
    """softmax(query key^T + mask + position_bias) value.

    Args:
      query: dtype[B, H, Q, K].
      key: dtype[B, H, S, K].
      value: dtype[B, H, S, K].
      mask: broadcastable to [B, H, Q, S]; gets no gradient.
      position_bias: dtype[1, H, Q, S] or None.

    Returns:
      dtype[B, H, Q, K].
    """
    logits_BxHxQxS = jnp.matmul(query, jnp.swapaxes(key, 2, 3)) + mask
    if position_bias is not None:
        logits_BxHxQxS += position_bias
    weights_BxHxQxS = jax.nn.softmax(logits_BxHxQxS.astype(jnp.float32), axis=-1)
    return jnp.matmul(weights_BxHxQxS.astype(value.dtype), value)


def step_attention(
    query: Array, key_columns: Array, value: Array, mask: Array, position_bias: Array | None
) -> Array:
    """`softmax_attention` for a step of decoding: its bits do not depend on how many lines take the step.

    `key_columns`: dtype[B, H, K, S], as the product wants keys, which all steps share.
    """
    logits_BxHxQxS = jnp.matmul(query, key_columns) + mask
    if position_bias is not None:
        logits_BxHxQxS += position_bias
    weights_BxHxQxS = halves.softmax(logits_BxHxQxS.astype(jnp.float32))
    return jnp.matmul(weights_BxHxQxS.astype(value.dtype), value)


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
        # The bias depends on key - query alone: look up one value per distance, then lay them out
        # along the diagonals. Both gradients are sums, where a lookup per cell would scatter.
        bucket_of_distance = np.concatenate([buckets[::-1, 0], buckets[0, 1:]])
        one_hot = np.eye(self.num_buckets, dtype=np.float32)[bucket_of_distance]
        bias_of_distance = jnp.dot(
            self.rel_embedding, one_hot.T, precision=jax.lax.Precision.HIGHEST
        )
        return diagonals(bias_of_distance.astype(self.dtype), queries, keys)[None]


def diagonals(of_distance: Array, queries: int, keys: int) -> Array:
    """[H, Q + S - 1] -> [H, Q, S], cell (q, s) holding of_distance[s - q + Q - 1].

    Each row of Q + S values is read off again as one of Q + S - 1, so that every row begins one value later
    than the row before.
    """
    heads, width = of_distance.shape[0], queries + keys
    row_Hx1xW = jnp.pad(of_distance, ((0, 0), (0, 1)))[:, None, :]
    flat = jnp.broadcast_to(row_Hx1xW, (heads, queries, width)).reshape(heads, -1)
    skewed = flat[:, queries - 1 : queries - 1 + queries * (width - 1)]
    return skewed.reshape(heads, queries, width - 1)[:, :, :keys]


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
        self.query = Kernel((self.features, joined), self.dtype, query_init)
        self.key = Kernel((self.features, joined), self.dtype, init)
        self.value = Kernel((self.features, joined), self.dtype, init)
        self.out = Kernel((joined, self.features), self.dtype, init)

    def _heads(self, x: Array) -> Array:
        """[B, L, H*K] -> [B, H, L, K]: heads first, so that attention is plain batched products."""
        x_BxLxHxK = x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        return jnp.swapaxes(x_BxLxHxK, 1, 2)

    def keys_values(self, x: Array) -> tuple[Array, Array]:
        """x: dtype[B, S, D] -> keys and values, each dtype[B, H, S, K]."""
        return self._heads(matmul(x, self.key())), self._heads(matmul(x, self.value()))

    def queries_keys_values(self, x: Array) -> tuple[Array, Array, Array]:
        """x: dtype[B, L, D] -> queries, keys and values, each dtype[B, H, L, K]."""
        return self._heads(matmul(x, self.query())), *self.keys_values(x)

    def attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: Array,
        position_bias: Array | None,
        deterministic: bool,
    ) -> Array:
        """softmax(query key^T + mask + position_bias) value, then the output projection.

        Args:
          query: dtype[B, H, Q, K].
          key: dtype[B, H, S, K].
          value: dtype[B, H, S, K].
          mask: from `mask_bias`, broadcastable to [B, H, Q, S].
          position_bias: dtype[1, H, Q, S], or None in cross-attention.
          deterministic: no dropout.

        Returns:
          dtype[B, Q, D].
        """
        # Flaxformer drops weights, the same keys for all queries: dropping those values is the same.
        value = dropout(self, value, self.dropout_rate, deterministic, broadcast=(-1,))
        return self._joined(softmax_attention(query, key, value, mask, position_bias))

    def _joined(self, mixed_BxHxQxK: Array) -> Array:
        """The heads joined by the output projection: dtype[B, H, Q, K] -> dtype[B, Q, D]."""
        mixed_BxQxHxK = jnp.swapaxes(mixed_BxHxQxK, 1, 2)
        return matmul(mixed_BxQxHxK.reshape(*mixed_BxQxHxK.shape[:2], -1), self.out())

    def __call__(
        self,
        x: Array,
        memory: Array | None,
        mask: Array,
        position_bias: Array | None,
        deterministic: bool,
    ) -> Array:
        """Attention of `x` (dtype[B, Q, D]) over `memory` (dtype[B, S, D]), or if None over itself.

        For `mask` and `position_bias` see `attend`. Returns dtype[B, Q, D].
        """
        if memory is None:
            query, key, value = self.queries_keys_values(x)
        else:
            query = self._heads(matmul(x, self.query()))
            key, value = self.keys_values(memory)
        return self.attend(query, key, value, mask, position_bias, deterministic)

    def step(
        self,
        x: Array,
        key_cache: Array,
        value_cache: Array,
        index: Array,
        mask: Array,
        position_bias: Array,
    ) -> tuple[Array, Array, Array]:
        """One position of causal self-attention.

        Args:
          x: dtype[N, 1, D], the newest position of N running sequences.
          key_cache: dtype[N, H, L, K]; positions >= `index` are still unused.
          value_cache: as `key_cache`.
          index: int32 scalar, the position of `x`.
          mask: dtype[1, 1, 1, L], -1e10 at positions after `index`.
          position_bias: dtype[1, H, 1, L].

        Returns:
          dtype[N, 1, D] and the two caches with position `index` filled.
        """
        query, key, value = self.queries_keys_values(x)
        key_cache = jax.lax.dynamic_update_slice_in_dim(key_cache, key, index, axis=2)
        value_cache = jax.lax.dynamic_update_slice_in_dim(value_cache, value, index, axis=2)
        columns = jnp.swapaxes(key_cache, 2, 3)
        update = self._joined(step_attention(query, columns, value_cache, mask, position_bias))
        return update, key_cache, value_cache

    def cross_step(self, x: Array, key_columns: Array, value: Array, mask: Array) -> Array:
        """One position of cross-attention; beams of one input share its keys and values.

        Args:
          x: dtype[B * beams, 1, D].
          key_columns: dtype[B, H, K, S], from `keys_values` of the encoder output.
          value: dtype[B, H, S, K].
          mask: dtype[B, 1, 1, S], -1e10 at padding.

        Returns:
          dtype[B * beams, 1, D].
        """
        query = self._heads(matmul(x.reshape(value.shape[0], -1, x.shape[-1]), self.query()))
        mixed = step_attention(query, key_columns, value, mask, None)
        return self._joined(mixed).reshape(x.shape)
