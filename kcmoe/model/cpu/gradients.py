# SPDX-License-Identifier: Apache-2.0
"""Gradients written out by hand, because XLA on CPUs makes slow or large programs of JAX's own.

The formulas themselves stand where the model uses them (`layers`, `attention`, `dispatch`,
`training.losses`), each under `@with_gradient(…)`. Here is, for each, a forward pass that returns what the
backward pass needs, and the backward pass. Tests compare every pair with JAX's gradient of the formula.
Where a TPU wants it otherwise, `model.tpu` has the piece. KCMOE_OWN_GRADIENTS=0 takes JAX's own instead.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from kcmoe.model import tpu
from kcmoe.model.tpu import kept

Formula = TypeVar("Formula", bound=Callable[..., Any])


def with_gradient(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *,
    settings: tuple[int, ...] = (),
    value_of_forward: bool = False,
) -> Callable[[Formula], Formula]:
    """Decorator that gives a formula a gradient of its own; the formula stays at `__wrapped__`.

    Args:
      forward: (*arguments) -> value, whatever `backward` needs.
      backward: (*settings, saved, gradient of the value) -> gradients of the other arguments; None is zero.
      settings: positions of arguments that are no arrays.
      value_of_forward: take `forward`'s value also where no gradient is asked for, not the formula's.
    """

    def decorate(formula: Formula) -> Formula:
        if os.environ.get("KCMOE_OWN_GRADIENTS") == "0":
            return formula
        value = (lambda *arguments: forward(*arguments)[0]) if value_of_forward else formula
        own = jax.custom_vjp(value, nondiff_argnums=settings)
        own.defvjp(forward, backward)
        return functools.update_wrapper(own, formula)  # type: ignore[return-value]

    return decorate


# --- Products. XLA multiplies a transposed operand by a slower routine, and adds up columns ten times slower
# than it multiplies.


def column_sums(x: Array) -> Array:
    """float[N, D] -> float[D], as a product."""
    return jnp.dot(jnp.ones(x.shape[0], x.dtype), x, precision=jax.lax.Precision.HIGHEST)


def matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    """x @ kernel: float[..., D] @ float[D, F]."""
    return jnp.dot(x, kernel), (x, kernel)


def matmul_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Gradients of x and of the kernel."""
    x, kernel = saved
    rows_NxD, dy_NxF = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dkernel = jax.lax.platform_dependent(
        rows_NxD, dy_NxF, cpu=_kernel_gradient, default=lambda x, dy: jnp.dot(x.T, dy)
    )
    return jnp.dot(dy, kernel.T), dkernel


def _kernel_gradient(x_NxD: Array, dy_NxF: Array) -> Array:
    """x^T dy -> float[D, F], with the narrower of the two laid out transposed before the product."""
    # Without the barrier the transposition would be folded into the product again.
    laid_out = jax.lax.optimization_barrier
    if x_NxD.shape[1] <= dy_NxF.shape[1]:
        return jnp.dot(laid_out(x_NxD.T), dy_NxF)
    return laid_out(jnp.dot(laid_out(dy_NxF.T), x_NxD)).T


# --- Norm: two passes over memory in the backward pass, not four.


def rms_norm_forward(
    x: Array, scale: Array, epsilon: float, dtype: jnp.dtype
) -> tuple[Array, tuple[Array, Array, Array]]:
    """`layers.rms_norm`, and 1 / rms(x)."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return (x32 * inverse).astype(dtype) * scale.astype(dtype), (x, scale, inverse)


def rms_norm_backward(
    epsilon: float, dtype: jnp.dtype, saved: tuple[Array, Array, Array], dy: Array
) -> tuple[Array, Array]:
    """Gradients of x and of the scale."""
    x, scale, inverse = saved
    x32, dy32 = x.astype(jnp.float32), dy.astype(jnp.float32)
    scaled = dy32 * scale.astype(jnp.float32)
    shrink = jnp.mean(scaled * x32, axis=-1, keepdims=True) * inverse**3
    rows_NxD = (dy32 * x32 * inverse).reshape(-1, x.shape[-1])
    return (scaled * inverse - x32 * shrink).astype(x.dtype), column_sums(rows_NxD).astype(
        scale.dtype
    )


# --- Gated GELU, from its two inputs alone.


def gated_gelu_forward(gate: Array, linear: Array) -> tuple[Array, tuple[Array, Array]]:
    """gelu(gate) * linear."""
    return jax.nn.gelu(gate) * linear, (gate, linear)


def gated_gelu_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Uses gelu(x) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).

    XLA would compute the sigmoid, or find the tanh, in the forward pass already and keep it in memory until
    here; adding nothing of `dy` makes it wait. (It ignores optimization barriers here.) Nor do the two
    gradients share a sigmoid, which would be stored between them: it is cheaper computed twice.
    """
    gate, linear = saved
    gate += 0.0 * dy
    root = math.sqrt(2.0 / math.pi)  # no NumPy scalar: that would turn bfloat16 into float32
    share = jax.nn.sigmoid(2.0 * root * (gate + 0.044715 * gate**3))
    slope = share + gate * share * (1.0 - share) * 2.0 * root * (1.0 + 3 * 0.044715 * gate**2)
    return dy * linear * slope, dy * jax.nn.gelu(gate)


# --- Attention: of the arrays of size Q x S, only the exponentials are kept (arXiv:2205.14135, appendix B.2).


def softmax_attention_forward(
    query: Array, key: Array, value: Array, mask: Array, position_bias: Array | None
) -> tuple[Array, tuple[Array | None, ...]]:
    """`attention.softmax_attention`, normalised after the second product."""
    logits_BxHxQxS = jnp.matmul(query, jnp.swapaxes(key, 2, 3)) + mask
    if position_bias is not None:
        logits_BxHxQxS += position_bias
    largest_BxHxQx1 = jnp.max(logits_BxHxQxS, axis=-1, keepdims=True)
    exponentials_BxHxQxS = kept(jnp.exp(logits_BxHxQxS - largest_BxHxQx1))
    mixed, total = jax.lax.platform_dependent(
        exponentials_BxHxQxS, value, tpu=tpu.mixed_and_total, default=_mixed_and_total
    )
    total_BxHxQx1 = kept(total)
    mixed_BxHxQxK = kept((mixed / total_BxHxQx1).astype(value.dtype))
    has_bias = None if position_bias is None else jnp.zeros(())
    saved = (query, key, value, exponentials_BxHxQxS, total_BxHxQx1, mixed_BxHxQxK, has_bias)
    return mixed_BxHxQxK, saved


def _mixed_and_total(weights_BxHxQxS: Array, value: Array) -> tuple[Array, Array]:
    """weights @ value and the sums of the weights' rows, both in float32."""
    mixed = jnp.matmul(weights_BxHxQxS, value).astype(jnp.float32)
    return mixed, jnp.sum(weights_BxHxQxS.astype(jnp.float32), axis=-1, keepdims=True)


def softmax_attention_backward(
    saved: tuple[Array, ...], dy_BxHxQxK: Array
) -> tuple[Array, Array, Array, None, Array | None]:
    """Gradients of query, key, value and position bias."""
    query, key, value, exponentials_BxHxQxS, total_BxHxQx1, mixed_BxHxQxK, has_bias = saved
    scaled_BxHxQxK = (dy_BxHxQxK.astype(jnp.float32) / total_BxHxQx1).astype(value.dtype)
    products = (scaled_BxHxQxK * mixed_BxHxQxK).astype(jnp.float32)
    shift_BxHxQx1 = jnp.sum(products, axis=-1, keepdims=True)
    dweights_BxHxQxS = jnp.matmul(scaled_BxHxQxK, jnp.swapaxes(value, 2, 3))
    dlogits_BxHxQxS = exponentials_BxHxQxS * (
        dweights_BxHxQxS - shift_BxHxQx1.astype(dweights_BxHxQxS.dtype)
    )
    dquery = jnp.matmul(dlogits_BxHxQxS, key)
    dkey = jnp.matmul(jnp.swapaxes(dlogits_BxHxQxS, 2, 3), query)
    dvalue = jnp.matmul(jnp.swapaxes(exponentials_BxHxQxS, 2, 3), scaled_BxHxQxK)
    if has_bias is None:
        return dquery, dkey, dvalue, None, None
    dbias = column_sums(dlogits_BxHxQxS.reshape(dlogits_BxHxQxS.shape[0], -1))
    return dquery, dkey, dvalue, None, dbias.reshape(1, *dlogits_BxHxQxS.shape[1:])


# --- Tokens to slots and back: a token has at most A slots, so that the gradients are gathers as well.
# `slots` are `dispatch.Slots`; no gradient belongs to them.


def rows_at(x: Array, index: Array) -> Array:
    """x[index] along the first axis, with zeros where the index is one past the end."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def to_slots_forward(x_NxD: Array, slots: Any) -> tuple[Array, Any]:
    """`dispatch.to_slots`."""
    return rows_at(x_NxD, slots.choice_of_M // slots.slot_of_NxA.shape[1]), slots


def to_slots_backward(slots: Any, dy_MxD: Array) -> tuple[Array, None]:
    """Gradient of the tokens: float[N, D]."""
    columns = [rows_at(dy_MxD, slots.slot_of_NxA[:, a]) for a in range(slots.slot_of_NxA.shape[1])]
    return sum(columns[1:], start=columns[0]), None


def from_slots_forward(
    y_MxD: Array, gate_NxA: Array, slots: Any
) -> tuple[Array, tuple[Array, Array, Any]]:
    """`dispatch.from_slots`."""
    columns = [
        gate_NxA[:, a, None].astype(y_MxD.dtype) * rows_at(y_MxD, slots.slot_of_NxA[:, a])
        for a in range(gate_NxA.shape[1])
    ]
    return sum(columns[1:], start=columns[0]), (y_MxD, gate_NxA, slots)


def from_slots_backward(
    saved: tuple[Array, Array, Any], dout_NxD: Array
) -> tuple[Array, Array, None]:
    """Gradients of the slots' rows and of the gates."""
    y_MxD, gate_NxA, slots = saved
    selected = gate_NxA.shape[1]
    gate_M = rows_at(gate_NxA.reshape(-1), slots.choice_of_M)
    dout_MxD = rows_at(dout_NxD, slots.choice_of_M // selected)
    dgate = [
        jnp.sum(
            (dout_NxD * rows_at(y_MxD, slots.slot_of_NxA[:, a])).astype(gate_NxA.dtype), axis=-1
        )
        for a in range(selected)
    ]
    return gate_M[:, None].astype(y_MxD.dtype) * dout_MxD, jnp.stack(dgate, axis=1), None


# --- Blocks of rows times the matrices of their experts: a loop both ways, nothing kept but the arguments.


def grouped_dot_forward(
    x_MxD: Array, w_ExDxF: Array, expert_of_block: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    """`dispatch.grouped_dot`."""
    blocks = x_MxD.reshape(expert_of_block.shape[0], -1, x_MxD.shape[-1])
    y = jax.lax.map(lambda item: jnp.dot(item[0], w_ExDxF[item[1]]), (blocks, expert_of_block))
    return y.reshape(x_MxD.shape[0], -1), (x_MxD, w_ExDxF, expert_of_block)


def grouped_dot_backward(
    saved: tuple[Array, Array, Array], dy_MxF: Array
) -> tuple[Array, Array, None]:
    """Gradients of the rows and of the experts' matrices."""
    x_MxD, w_ExDxF, expert_of_block = saved
    dx_MxD, _ = grouped_dot_forward(dy_MxF, jnp.swapaxes(w_ExDxF, 1, 2), expert_of_block)
    x_blocks = x_MxD.reshape(expert_of_block.shape[0], -1, x_MxD.shape[-1])
    dy_blocks = dy_MxF.reshape(expert_of_block.shape[0], -1, dy_MxF.shape[-1])

    def add(dw_ExDxF: Array, item: tuple[Array, Array, Array]) -> tuple[Array, None]:
        x, dy, expert = item
        return dw_ExDxF.at[expert].add(jnp.dot(x.T, dy)), None

    start = jnp.zeros_like(w_ExDxF)
    dw_ExDxF, _ = jax.lax.scan(add, start, (x_blocks, dy_blocks, expert_of_block))
    return dx_MxD, dw_ExDxF, None


# --- The output head: its gradients are computed on the way forward, chunk by chunk.

Chunk = tuple[Array, ...]  # float32[n, D] hidden, int32[n] targets, float32[n] weights


def head_gradients(
    x_NxD: Array, kernel: Array, exponentials_NxV: Array, scale: Array, right: Array,
    targets_N: Array, dkernel_DxV: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Gradient of x, and that of the kernel added to `dkernel_DxV`; the logits' own is never formed."""
    dkernel_DxV += jnp.dot((scale * x_NxD).T, exponentials_NxV)
    dkernel_DxV = dkernel_DxV.at[:, targets_N].add(-(right * x_NxD).T)
    dx_NxD = scale * jnp.dot(exponentials_NxV, kernel.T)
    return dx_NxD - right * jnp.take(kernel, targets_N, axis=1).T, dkernel_DxV


def head_cross_entropy(
    cut: Callable[..., Chunk], sums_of: Callable[..., Array]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward pass of `training.losses.head_cross_entropy`.

    Args:
      cut: its three arrays, cut into chunks [chunks, n, …].
      sums_of: (logits, targets, weights, z_loss, label_smoothing) -> float32[3], sums over a chunk.
    """

    def forward(
        hidden: Array,
        kernel: Array,
        targets: Array,
        weights: Array,
        z_loss: float,
        label_smoothing: float,
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        wrong = label_smoothing / (kernel.shape[1] - 1)

        def add(carry: tuple[Array, Array], chunk: Chunk) -> tuple[tuple[Array, Array], Array]:
            x_NxD, targets_N, weights_N = chunk
            logits_NxV = jnp.dot(x_NxD, kernel)
            sums = sums_of(logits_NxV, targets_N, weights_N, z_loss, label_smoothing)
            # `sums_of` computes these three as well; XLA finds that they are the same.
            largest_N = jnp.max(logits_NxV, axis=-1)
            exponentials_NxV = jnp.exp(logits_NxV - largest_N[:, None])
            total_N = jnp.sum(exponentials_NxV, axis=-1)
            log_z_N = jnp.log(total_N) + largest_N
            # The gradient of the logits is scale * exponentials - right at the target - flat everywhere.
            scale = (weights_N * (1.0 + 2.0 * z_loss * log_z_N) / total_N)[:, None]
            right = (weights_N * (1.0 - label_smoothing - wrong))[:, None]
            total_sums, dkernel_DxV = carry
            parts = (x_NxD, kernel, exponentials_NxV, scale, right, targets_N, dkernel_DxV)
            dx_NxD, dkernel_DxV = jax.lax.platform_dependent(
                *parts, tpu=tpu.head_gradients, default=head_gradients
            )
            if label_smoothing:
                flat = (weights_N * wrong)[:, None]
                dkernel_DxV -= jnp.sum(flat * x_NxD, axis=0)[:, None]
                dx_NxD -= flat * jnp.sum(kernel, axis=1)
            return (total_sums + sums, dkernel_DxV), dx_NxD

        start = (jnp.zeros((3,)), jnp.zeros_like(kernel))
        (sums, dkernel_DxV), dx = jax.lax.scan(add, start, cut(hidden, targets, weights))
        dhidden = dx.reshape(-1, hidden.shape[1])[: hidden.shape[0]].astype(hidden.dtype)
        return (sums[0], sums[1], sums[2]), (dhidden, dkernel_DxV)

    def backward(
        z_loss: float,
        label_smoothing: float,
        saved: tuple[Array, Array],
        grads: tuple[Array, Array, Array],
    ) -> tuple[Array, Array, None, None]:
        dhidden, dkernel = saved
        return dhidden * grads[0].astype(dhidden.dtype), dkernel * grads[0], None, None

    return forward, backward
