# SPDX-License-Identifier: Apache-2.0
"""The small parts: norm, dense projection, gated MLP, embedding, dropout.

Parameter names, shapes and initial distributions are Flaxformer's (flaxformer@399ea3a:
components/{layer_norm,dense,embedding}.py and t5x/configs/moe/architectures/moe.gin). Differences: the
embedding is a lookup, not a product with a one-hot matrix (same numbers, no 2*V*D FLOPs per token).
What `@with_gradient` names is the formula's gradient written out for speed, and may be skipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from kcmoe.model.cpu import gradients, halves
from kcmoe.model.cpu.gradients import with_gradient

Initializer = jax.nn.initializers.Initializer


def kernel_init(scale: float, distribution: str, experts: bool = False) -> Initializer:
    """Variance scaling over fan-in; with `experts`, axis 0 counts experts and is no fan."""
    batch_axis: tuple[int, ...] = (0,) if experts else ()
    return nn.initializers.variance_scaling(scale, "fan_in", distribution, batch_axis=batch_axis)


@with_gradient(gradients.rms_norm_forward, gradients.rms_norm_backward, settings=(2, 3))
def rms_norm(x: Array, scale: Array, epsilon: float, dtype: jnp.dtype) -> Array:
    """x / rms(x) * scale over the last axis (arXiv:1910.07467, eq. 4): [..., D], float32[D] -> dtype[..., D].

    The mean square is taken in float32.
    """
    return _normed(x, scale, epsilon, dtype, functools.partial(jnp.mean, axis=-1, keepdims=True))


def _normed(
    x: Array, scale: Array, epsilon: float, dtype: jnp.dtype, mean: Callable[[Array], Array]
) -> Array:
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(mean(jnp.square(x32)) + epsilon)
    return (x32 * inverse).astype(dtype) * scale.astype(dtype)


@with_gradient(gradients.matmul_forward, gradients.matmul_backward)
def matmul(x: Array, kernel: Array) -> Array:
    """x @ kernel: float[..., D], float[D, F] -> float[..., F]."""
    return product(x, kernel)


def product(x: Array, kernel: Array) -> Array:
    """x @ kernel. With a narrower kernel x is narrowed, and what is added up has the dtype of x."""
    if x.dtype == kernel.dtype:
        return jnp.dot(x, kernel)
    return jnp.dot(x.astype(kernel.dtype), kernel, preferred_element_type=x.dtype)


def in_dtype(kernel: Array, dtype: jnp.dtype) -> Array:
    """A float32 kernel in `dtype`; one that was narrowed for answering (`loading.narrowed`) as it is."""
    return kernel.astype(dtype) if kernel.dtype == jnp.float32 else kernel


@with_gradient(gradients.gated_gelu_forward, gradients.gated_gelu_backward)
def gated_gelu(gate: Array, linear: Array) -> Array:
    """gelu(gate) * linear, gelu in its tanh form (arXiv:1606.08415, section 2)."""
    return nn.gelu(gate) * linear


class T5LayerNorm(nn.Module):
    """`rms_norm` with a learned scale: no centring, no bias."""

    dtype: jnp.dtype
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: float[..., D] -> dtype[..., D]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        if x.ndim == 3 and x.shape[1] == 1:  # a step of decoding
            return _normed(x, scale, self.epsilon, self.dtype, halves.mean)
        return rms_norm(x, scale, self.epsilon, self.dtype)


class Kernel(nn.Module):
    """A weight matrix by itself, float32[shape], handed out in `dtype`."""

    shape: tuple[int, ...]
    dtype: jnp.dtype
    init: Initializer

    @nn.compact
    def __call__(self) -> Array:
        return in_dtype(self.param("kernel", self.init, self.shape, jnp.float32), self.dtype)


class Dense(nn.Module):
    """x @ kernel, no bias. kernel: float32[fan_in, features], used in `dtype`."""

    features: int
    dtype: jnp.dtype
    init: Initializer

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: float[..., fan_in] -> dtype[..., features]."""
        kernel = self.param("kernel", self.init, (x.shape[-1], self.features), jnp.float32)
        return matmul(x.astype(self.dtype), in_dtype(kernel, self.dtype))


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
    return scale_kept(x, keep, rate)


def scale_kept(x: Array, keep: Array, rate: float) -> Array:
    """x where the bool `keep` (broadcastable) says so, divided by the share that is kept; 0 elsewhere."""
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
        x = x.astype(self.dtype)
        hidden = gated_gelu(matmul(x, wi_0), matmul(x, wi_1))
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
