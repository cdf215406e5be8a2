# SPDX-License-Identifier: Apache-2.0
"""The loss of ST-MoE: cross-entropy with z-loss, plus the routers' balance and z losses.

Numbers are T5X's (t5x@cc342d4:t5x/losses.py and t5x/contrib/moe/models.py). Difference: targets are looked
up instead of being multiplied in as one-hot vectors of the vocabulary's length, and the head computes its
gradient chunk by chunk on the way forward.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kcmoe.config.training import LossConfig
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.tree import flattened, nested

Batch = Mapping[str, Array]
Metrics = dict[str, Array]

HEAD = "decoder/logits_dense/kernel"  # float32[D, V]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def head_cross_entropy(
    hidden: Array,
    kernel: Array,
    targets: Array,
    weights: Array,
    z_loss: float,
    label_smoothing: float,
) -> tuple[Array, Array, Array]:
    """Weighted cross-entropy of the output head, without keeping the logits of all tokens.

    With logits = hidden @ kernel and Z the sum of their exponentials, a token's loss is
    log Z - logit[target] + z_loss * (log Z)^2. With label smoothing s the target is 1 - s on the right id and
    s / (V - 1) on the others, and the entropy of that target is subtracted, so that the best reachable loss
    is 0. Both gradients are computed on the way forward, `CHUNK` tokens at a time: the logits of a batch
    are by far its largest array.

    Args:
      hidden: float[N, D].
      kernel: float32[D, V].
      targets: int32[N].
      weights: float32[N], what each token's loss is multiplied by.
      z_loss: weight of the (log Z)^2 term.
      label_smoothing: s.

    Returns:
      float32 sums over tokens, weighted: loss with the z term; the z term alone; tokens whose target has the
      largest logit. Only the first is differentiable.
    """
    chunks = _chunks(hidden, targets, weights)

    def add(total: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return total + _chunk_sums(chunk, kernel, z_loss, label_smoothing)[0], None

    loss, z_term, correct = jax.lax.scan(add, jnp.zeros((3,)), chunks)[0]
    return loss, z_term, correct


CHUNK = 2048  # tokens whose logits exist at a time


def chunk_tokens(tokens: int) -> int:
    """Tokens per chunk: at most `CHUNK`, the same for all chunks."""
    return -(-tokens // -(-tokens // CHUNK))


def _chunks(hidden: Array, targets: Array, weights: Array) -> tuple[Array, Array, Array]:
    """The three arrays as [chunks, tokens per chunk, …], in float32, padded with weight 0."""
    tokens = targets.shape[0]
    size = chunk_tokens(tokens)
    count = -(-tokens // size)
    pad = count * size - tokens

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)) if pad else x
        return x.reshape(count, size, *x.shape[1:])

    return cut(hidden.astype(jnp.float32)), cut(targets), cut(weights.astype(jnp.float32))


def _chunk_sums(
    chunk: tuple[Array, Array, Array], kernel: Array, z_loss: float, label_smoothing: float
) -> tuple[Array, tuple[Array, Array, Array]]:
    """float32[3] weighted sums, and what the gradient needs: exp(logits - max), its sum, log Z."""
    hidden, targets, weights = chunk
    logits = jnp.dot(hidden, kernel)
    largest = jnp.max(logits, axis=-1)
    exponentials = jnp.exp(logits - largest[:, None])
    total = jnp.sum(exponentials, axis=-1)
    log_z = jnp.log(total) + largest
    target_logit = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    loss = log_z - target_logit
    if label_smoothing:
        vocab = kernel.shape[1]
        right, wrong = 1.0 - label_smoothing, label_smoothing / (vocab - 1)
        others = log_z * (vocab - 1) - (jnp.sum(logits, axis=-1) - target_logit)
        entropy = -(right * np.log(right) + (vocab - 1) * wrong * np.log(wrong + 1e-20))
        loss = right * loss + wrong * others - entropy
    z_term = z_loss * jnp.square(log_z)
    correct = (target_logit >= largest).astype(jnp.float32)
    sums = jnp.stack([loss + z_term, z_term, correct]) @ weights
    return sums, (exponentials, total, log_z)


def _head_fwd(
    hidden: Array,
    kernel: Array,
    targets: Array,
    weights: Array,
    z_loss: float,
    label_smoothing: float,
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
    vocab = kernel.shape[1]
    wrong = label_smoothing / (vocab - 1)

    def add(
        carry: tuple[Array, Array], chunk: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        sums, (exponentials, total, log_z) = _chunk_sums(chunk, kernel, z_loss, label_smoothing)
        x, targets, weights = chunk
        # The gradient of the logits is scale * exponentials - right at the target - flat everywhere. It is
        # never formed: its three parts go through the products with kernel and x one by one.
        scale = (weights * (1.0 + 2.0 * z_loss * log_z) / total)[:, None]
        right = (weights * (1.0 - label_smoothing - wrong))[:, None]
        total_sums, dkernel = carry
        dkernel += jnp.dot((scale * x).T, exponentials)
        dkernel = dkernel.at[:, targets].add(-(right * x).T)
        dx = scale * jnp.dot(exponentials, kernel.T)
        dx -= right * jnp.take(kernel, targets, axis=1).T
        if label_smoothing:
            flat = (weights * wrong)[:, None]
            dkernel -= jnp.sum(flat * x, axis=0)[:, None]
            dx -= flat * jnp.sum(kernel, axis=1)
        return (total_sums + sums, dkernel), dx

    start = (jnp.zeros((3,)), jnp.zeros_like(kernel))
    (sums, dkernel), dhidden = jax.lax.scan(add, start, _chunks(hidden, targets, weights))
    dhidden = dhidden.reshape(-1, hidden.shape[1])[: hidden.shape[0]].astype(hidden.dtype)
    return (sums[0], sums[1], sums[2]), (dhidden, dkernel)


def _head_bwd(
    z_loss: float,
    label_smoothing: float,
    saved: tuple[Array, Array],
    grads: tuple[Array, Array, Array],
) -> tuple[Array, Array, None, None]:
    dhidden, dkernel = saved
    return dhidden * grads[0].astype(dhidden.dtype), dkernel * grads[0], None, None


head_cross_entropy.defvjp(_head_fwd, _head_bwd)


def features(batch: Batch) -> dict[str, Array]:
    """The part of a batch that the model takes."""
    return {name: x for name, x in batch.items() if name != "decoder_loss_weights"}


def loss_weights(batch: Batch) -> Array:
    """float32[B, L]: `decoder_loss_weights`, or 1 at every target that is no padding."""
    weights = batch.get("decoder_loss_weights")
    if weights is None:
        weights = batch["decoder_target_tokens"] > 0
    return weights.astype(jnp.float32)


def loss_and_metrics(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    batch: Batch,
    config: LossConfig,
    dropout_rng: Array | None,
) -> tuple[Array, Metrics]:
    """The loss that is differentiated, and what is reported about it.

    Args:
      model: the model.
      params: flat parameters.
      batch: T5X's features.
      config: weights of the parts.
      dropout_rng: a key for training (and the training capacity factor), None for evaluation.

    Returns:
      The total loss (float32 scalar) and metrics: sums `correct`, `weights`; scalars `loss`, `z_loss`,
      `cross_ent_loss`, `experts/*` as T5X reports them (losses weighted, the rest means over sparse layers),
      and per sparse layer everything `MoeLayer` sows, at `router/<layer path>/<name>`.
    """
    training = dropout_rng is not None
    hidden, sown = model.apply(
        {"params": nested(params)},
        **features(batch),
        logits=False,
        enable_dropout=training,
        mutable=["intermediates"],
        rngs={"dropout": dropout_rng} if training else None,
    )
    targets, weights = batch["decoder_target_tokens"], loss_weights(batch)
    num_weights = jnp.sum(weights)
    real_only = config.normalizing_factor == "NUM_REAL_TARGET_TOKENS"
    normalizer = num_weights if real_only else jnp.asarray(targets.size, jnp.float32)
    token_part, z_loss, correct = head_cross_entropy(
        hidden.reshape(targets.size, -1),
        params[HEAD],
        targets.reshape(-1),
        weights.reshape(-1) / normalizer,
        config.z_loss,
        config.label_smoothing,
    )

    report = flattened(sown.get("intermediates", {}))
    means = _means_over_layers(report)
    aux_loss = config.aux_loss_factor * means.get("auxiliary_loss", jnp.zeros(()))
    router_z_loss = config.router_z_loss_factor * means.get("router_z_loss", jnp.zeros(()))
    loss = token_part + aux_loss + router_z_loss
    metrics = {
        "loss": loss,
        "cross_ent_loss": loss - z_loss - aux_loss - router_z_loss,
        "z_loss": z_loss,
        "correct": correct * normalizer,
        "weights": num_weights,
    }
    if means:
        metrics |= {
            "experts/auxiliary_loss": aux_loss,
            "experts/router_z_loss": router_z_loss,
            "experts/fraction_tokens_left_behind": means["fraction_tokens_left_behind"],
            "experts/expert_usage": means["expert_usage"],
            "experts/router_confidence": means["router_confidence"],
        }
        metrics |= {f"router/{path}": value for path, value in report.items()}
    return loss, jax.lax.stop_gradient(metrics)


def _means_over_layers(report: Mapping[str, Array]) -> dict[str, Array]:
    """Mean of each scalar that the sparse layers sowed, by its last path component."""
    by_name: dict[str, list[Array]] = {}
    for path, value in report.items():
        if value.ndim == 0:
            by_name.setdefault(path.rsplit("/", 1)[-1], []).append(value)
    return {name: jnp.mean(jnp.stack(values)) for name, values in by_name.items()}
