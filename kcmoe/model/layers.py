# SPDX-License-Identifier: Apache-2.0
"""The small parts: norm, dense projection, gated MLP, embedding, dropout.

Parameter names, shapes and initial distributions are Flaxformer's (flaxformer@399ea3a:
components/{layer_norm,dense,embedding}.py and t5x/configs/moe/architectures/moe.gin). Differences: the
embedding is a lookup, not a product with a one-hot matrix (same numbers, no 2*V*D FLOPs per token).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

Initializer = jax.nn.initializers.Initializer


def kernel_init(scale: float, distribution: str, experts: bool = False) -> Initializer:
    """Variance scaling over fan-in; with `experts`, axis 0 counts experts and is no fan."""
    batch_axis: tuple[int, ...] = (0,) if experts else ()
    return nn.initializers.variance_scaling(scale, "fan_in", distribution, batch_axis=batch_axis)


class T5LayerNorm(nn.Module):
    """RMS norm without centring or bias: x / rms(x) * scale (arXiv:1910.07467, eq. 4)."""

    dtype: jnp.dtype
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: float[..., D] -> dtype[..., D]; the mean square is taken in float32."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        y = (x32 * jax.lax.rsqrt(mean_square + self.epsilon)).astype(self.dtype)
        return y * scale.astype(self.dtype)


class Kernel(nn.Module):
    """A weight matrix by itself, float32[shape], handed out in `dtype`."""

    shape: tuple[int, ...]
    dtype: jnp.dtype
    init: Initializer

    @nn.compact
    def __call__(self) -> Array:
        return self.param("kernel", self.init, self.shape, jnp.float32).astype(self.dtype)


@jax.custom_vjp
def matmul(x: Array, kernel: Array) -> Array:
    """float[..., D] @ float[D, F] -> float[..., F].

    JAX's own gradient of the kernel is dy^T x, transposed afterwards; XLA for CPUs then copies dy in
    transposed order first, which costs a fifth of an MLP. This one asks for x^T dy.
    """
    return jnp.dot(x, kernel)


def _matmul_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, dy_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return jnp.dot(dy, kernel.T), jnp.dot(rows.T, dy_rows)


matmul.defvjp(lambda x, kernel: (jnp.dot(x, kernel), (x, kernel)), _matmul_bwd)


class Dense(nn.Module):
    """x @ kernel, no bias. kernel: float32[fan_in, features], used in `dtype`."""

    features: int
    dtype: jnp.dtype
    init: Initializer

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: float[..., fan_in] -> dtype[..., features]."""
        kernel = self.param("kernel", self.init, (x.shape[-1], self.features), jnp.float32)
        return matmul(x.astype(self.dtype), kernel.astype(self.dtype))


def project(x: Array, *kernels: Array) -> Array:
    """x @ each kernel, side by side, as one product: x is read once.

    float[..., fan_in], [fan_in, F1], [fan_in, F2], … -> [..., F1 + F2 + …]
    """
    return matmul(x.astype(kernels[0].dtype), jnp.concatenate(kernels, axis=1))


@jax.custom_vjp
def gated_gelu(both: Array) -> Array:
    """gelu(first half) * second half of the last axis: [..., 2F] -> [..., F].

    The backward pass starts from `both` again, so that neither the tanh nor the halves are kept.
    """
    gate, linear = jnp.split(both, 2, axis=-1)
    return nn.gelu(gate) * linear


def _gated_gelu_bwd(both: Array, grad: Array) -> tuple[Array]:
    gate, linear = jnp.split(both, 2, axis=-1)
    activated, gelu_grad = jax.vjp(nn.gelu, gate)
    return (jnp.concatenate([*gelu_grad(grad * linear), grad * activated], axis=-1),)


gated_gelu.defvjp(lambda both: (gated_gelu(both), both), _gated_gelu_bwd)


def dropout(
    module: nn.Module, x: Array, rate: float, deterministic: bool, broadcast: Sequence[int] = (-2,)
) -> Array:
    """Dropout that shares its mask along `broadcast` axes, by default the length, as T5 does."""
    if deterministic or rate == 0.0:
        return x
    mask_shape = list(x.shape)
    for axis in broadcast:
        mask_shape[axis] = 1
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, tuple(mask_shape))
    return x * keep.astype(x.dtype) / jnp.asarray(1.0 - rate, x.dtype)


class MlpBlock(nn.Module):
    """Gated GELU: wo(gelu(wi_0 x) * wi_1 x) (arXiv:2002.05202, GEGLU without biases)."""

    mlp_dim: int
    dropout_rate: float
    scale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        """x: float[..., D] -> dtype[..., D]."""
        init, width = kernel_init(self.scale, "truncated_normal"), x.shape[-1]
        wi_0 = Kernel((width, self.mlp_dim), self.dtype, init, name="wi_0")()
        wi_1 = Kernel((width, self.mlp_dim), self.dtype, init, name="wi_1")()
        hidden = gated_gelu(project(x, wi_0, wi_1))
        hidden = dropout(self, hidden, self.dropout_rate, deterministic)
        return Dense(width, self.dtype, init, name="wo")(hidden)


class Embed(nn.Module):
    """Token embedding shared by encoder and decoder. embedding: float32[V, D]."""

    num_embeddings: int
    features: int
    dtype: jnp.dtype

    def setup(self) -> None:
        shape = (self.num_embeddings, self.features)
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), shape, jnp.float32)

    def __call__(self, ids: Array) -> Array:
        """ids: int32[...] in [0, V) -> dtype[..., D]. Ids outside are a caller's error."""
        return jnp.take(self.embedding, ids, axis=0, mode="clip").astype(self.dtype)
