# SPDX-License-Identifier: Apache-2.0
"""The small parts: norm, dense projection, gated MLP, embedding, dropout.

Parameter names, shapes and initial distributions are Flaxformer's (flaxformer@399ea3a:
components/{layer_norm,dense,embedding}.py and t5x/configs/moe/architectures/moe.gin). Differences: the
embedding is a lookup, not a product with a one-hot matrix (same numbers, no 2*V*D FLOPs per token).
"""

from __future__ import annotations

import functools
import math
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rms_norm(x: Array, scale: Array, epsilon: float, dtype: jnp.dtype) -> Array:
    """x / rms(x) * scale over the last axis (arXiv:1910.07467, eq. 4): [..., D], float32[D] -> dtype[..., D].

    The mean square is taken in float32. The gradient is written out: two passes over memory, not four.
    """
    return _rms_norm_fwd(x, scale, epsilon, dtype)[0]


def _rms_norm_fwd(
    x: Array, scale: Array, epsilon: float, dtype: jnp.dtype
) -> tuple[Array, tuple[Array, Array, Array]]:
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return (x32 * inverse).astype(dtype) * scale.astype(dtype), (x, scale, inverse)


def _rms_norm_bwd(
    epsilon: float, dtype: jnp.dtype, saved: tuple[Array, Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, scale, inverse = saved
    x32, dy32 = x.astype(jnp.float32), dy.astype(jnp.float32)
    scaled = dy32 * scale
    shrink = jnp.mean(scaled * x32, axis=-1, keepdims=True) * inverse**3
    rows = (dy32 * x32 * inverse).reshape(-1, x.shape[-1])
    return (scaled * inverse - x32 * shrink).astype(x.dtype), column_sums(rows).astype(scale.dtype)


rms_norm.defvjp(_rms_norm_fwd, _rms_norm_bwd)


def column_sums(x: Array) -> Array:
    """float[N, D] -> float[D], as a product: XLA for CPUs adds up columns ten times slower."""
    return jnp.dot(jnp.ones(x.shape[0], x.dtype), x, precision=jax.lax.Precision.HIGHEST)


class T5LayerNorm(nn.Module):
    """`rms_norm` with a learned scale: no centring, no bias."""

    dtype: jnp.dtype
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: float[..., D] -> dtype[..., D]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return rms_norm(x, scale, self.epsilon, self.dtype)


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
    """float[..., D] @ float[D, F] -> float[..., F], with `kernel_gradient` as the kernel's gradient."""
    return jnp.dot(x, kernel)


def _matmul_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, dy_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return jnp.dot(dy, kernel.T), kernel_gradient(rows, dy_rows)


matmul.defvjp(lambda x, kernel: (jnp.dot(x, kernel), (x, kernel)), _matmul_bwd)


def kernel_gradient(x: Array, dy: Array) -> Array:
    """x^T dy: float[N, D], float[N, F] -> float[D, F].

    XLA for CPUs multiplies a transposed operand by a slower routine, slowest when the wide one is
    transposed: there the narrow one is laid out transposed first. Elsewhere products take either layout.
    """
    if jax.default_backend() != "cpu":
        return jnp.dot(x.T, dy)
    # Without the barrier the transposition would be folded into the product again.
    laid_out = jax.lax.optimization_barrier
    if x.shape[1] <= dy.shape[1]:
        return jnp.dot(laid_out(x.T), dy)
    return laid_out(jnp.dot(laid_out(dy.T), x)).T


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


@jax.custom_vjp
def gated_gelu(gate: Array, linear: Array) -> Array:
    """gelu(gate) * linear, gelu in its tanh form (arXiv:1606.08415, section 2)."""
    return nn.gelu(gate) * linear


def _gated_gelu_bwd(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """Computed from the two inputs alone, with gelu(x) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).

    XLA for CPUs would compute the sigmoid, or find the tanh, in the forward pass already and keep it in
    memory until here; adding nothing of `grad` makes it wait. (It ignores optimization barriers here.) Nor do
    the two gradients share a sigmoid, which would be stored between them: it is cheaper computed twice.
    """
    gate, linear = saved
    gate += 0.0 * grad
    root = math.sqrt(2.0 / math.pi)  # no NumPy scalar: that would turn bfloat16 into float32
    share = nn.sigmoid(2.0 * root * (gate + 0.044715 * gate**3))
    slope = share + gate * share * (1.0 - share) * 2.0 * root * (1.0 + 3 * 0.044715 * gate**2)
    return grad * linear * slope, grad * nn.gelu(gate)


gated_gelu.defvjp(lambda gate, linear: (gated_gelu(gate, linear), (gate, linear)), _gated_gelu_bwd)


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
