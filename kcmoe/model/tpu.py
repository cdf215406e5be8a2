# SPDX-License-Identifier: Apache-2.0
"""What is in this program because of how XLA computes on TPUs; a reader of the model may skip it.

Nothing of the model's mathematics is decided here. Chosen by the compiler's own figures (`kcmoe plan
--compile`, benchmarks/README.md), on no TPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

_NAME = "kept"

KEPT = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(_NAME),
)
"""Policy of `jax.checkpoint` for a layer: products of rows with weights wait for the backward pass, and what
is marked `kept`. Norms, GELU and layouts are computed again: they are cheap, and as large."""


def kept(x: Array) -> Array:
    """`x`, to be kept for the backward pass where a layer follows `KEPT`."""
    return checkpoint_name(x, _NAME)


def mixed_and_total(weights_BxHxQxS: Array, value: Array) -> tuple[Array, Array]:
    """weights @ value and the sums of the weights' rows, float32, in one product.

    A column of ones fits where a TPU pads a head of 64 to 128 anyway, and the weights are read once.
    """
    ones = jnp.ones((*value.shape[:-1], 1), value.dtype)
    widened = jnp.concatenate([value, ones], axis=-1)
    both = jnp.matmul(weights_BxHxQxS, widened, preferred_element_type=jnp.float32)
    return both[..., :-1], both[..., -1:]


def head_gradients(
    x_NxD: Array, kernel: Array, exponentials_NxV: Array, scale: Array, right: Array,
    targets_N: Array, dkernel_DxV: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """`cpu.gradients.head_gradients` by way of the logits' gradient, which XLA makes inside the products.

    There a scatter into columns costs two copies of the kernel's gradient.
    """
    is_target_NxV = targets_N[:, None] == jnp.arange(kernel.shape[1])
    dlogits_NxV = scale * exponentials_NxV - jnp.where(is_target_NxV, right, 0.0)
    return jnp.dot(dlogits_NxV, kernel.T), dkernel_DxV + jnp.dot(x_NxD.T, dlogits_NxV)
