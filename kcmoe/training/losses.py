# SPDX-License-Identifier: Apache-2.0
"""The loss of ST-MoE: cross-entropy with z-loss, plus the routers' balance and z losses.

Numbers are T5X's (t5x@cc342d4:t5x/losses.py and t5x/contrib/moe/models.py). Difference: targets are looked
up instead of being multiplied in as one-hot vectors of the vocabulary's length, and the head computes its
gradient chunk by chunk on the way forward.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from kcmoe.config.training import LossConfig
from kcmoe.model.cpu import gradients
from kcmoe.model.cpu.gradients import with_gradient
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.interface import HEAD, TEACHER_IDS, TEACHER_PROBS, features, loss_weights
from kcmoe.model.placing import row_axes, rows_over
from kcmoe.tree import flattened, nested

Batch = Mapping[str, Array]
Metrics = dict[str, Array]


CHUNK = 2048  # tokens whose logits exist at a time


def chunk_tokens(tokens: int) -> int:
    """Tokens per chunk: at most `CHUNK`, the same for all chunks."""
    return -(-tokens // -(-tokens // CHUNK))


def chunks(*arrays: Array) -> tuple[Array, ...]:
    """Arrays [N, …] of tokens as [chunks, tokens per chunk, …], floats in float32, padded with 0."""
    tokens = arrays[0].shape[0]
    size = chunk_tokens(tokens)
    count = -(-tokens // size)
    pad = count * size - tokens

    def cut(x: Array) -> Array:
        x = x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
        x = jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)) if pad else x
        return x.reshape(count, size, *x.shape[1:])

    return tuple(map(cut, arrays))


def _weighted_sums(
    logits_NxV: Array, targets_N: Array, weights_N: Array, z_loss: float, label_smoothing: float
) -> Array:
    """float32[3]: what `head_cross_entropy` returns, of tokens whose logits are there."""
    largest_N = jnp.max(logits_NxV, axis=-1)
    log_z_N = jnp.log(jnp.sum(jnp.exp(logits_NxV - largest_N[:, None]), axis=-1)) + largest_N
    target_logit_N = jnp.take_along_axis(logits_NxV, targets_N[:, None], axis=-1)[:, 0]
    loss_N = log_z_N - target_logit_N
    if label_smoothing:
        vocab = logits_NxV.shape[1]
        right, wrong = 1.0 - label_smoothing, label_smoothing / (vocab - 1)
        others_N = log_z_N * (vocab - 1) - (jnp.sum(logits_NxV, axis=-1) - target_logit_N)
        entropy = -(right * math.log(right) + (vocab - 1) * wrong * math.log(wrong + 1e-20))
        loss_N = right * loss_N + wrong * others_N - entropy
    z_term_N = z_loss * jnp.square(log_z_N)
    correct_N = (target_logit_N >= largest_N).astype(jnp.float32)
    return jnp.stack([loss_N + z_term_N, z_term_N, correct_N]) @ weights_N


_forward, _backward = gradients.head_cross_entropy(chunks, _weighted_sums)


@with_gradient(_forward, _backward, settings=(4, 5))
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
    is 0. Logits exist for `CHUNK` tokens at a time: those of a batch are by far its largest array.

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

    def add(total: Array, chunk: tuple[Array, ...]) -> tuple[Array, None]:
        hidden_NxD, targets_N, weights_N = chunk
        logits_NxV = jnp.dot(hidden_NxD, kernel)
        sums = _weighted_sums(logits_NxV, targets_N, weights_N, z_loss, label_smoothing)
        return total + sums, None

    parts = chunks(hidden, targets, weights)
    loss, z_term, correct = jax.lax.scan(add, jnp.zeros((3,)), parts)[0]
    return loss, z_term, correct


def towards_teacher(
    hidden: Array, kernel: Array, targets: Array, weights: Array, ids: Array, probs: Array
) -> Array:
    """What the cross-entropy against a teacher's probabilities is above that against the targets.

    Both contain log Z, so their difference needs only the logits of a few pieces: that of the target, less
    the mean of the teacher's pieces by their probabilities.

    Args:
      hidden: float[N, D].
      kernel: float32[D, V].
      targets: int32[N].
      weights: float32[N].
      ids: int32[N, K], the pieces.
      probs: float32[N, K], rows summing to 1.

    Returns:
      float32 (), the weighted sum over tokens.
    """

    @jax.checkpoint
    def add(total: Array, chunk: tuple[Array, ...]) -> tuple[Array, None]:
        x_NxD, targets_N, weights_N, ids_NxK, probs_NxK = chunk
        named_Nx1K = jnp.concatenate([targets_N[:, None], ids_NxK], axis=1)
        logits_Nx1K = jnp.einsum("nd,dnk->nk", x_NxD, jnp.take(kernel, named_Nx1K, axis=1))
        excess_N = logits_Nx1K[:, 0] - jnp.sum(probs_NxK * logits_Nx1K[:, 1:], axis=-1)
        return total + jnp.sum(weights_N * excess_N), None

    parts = chunks(hidden, targets, weights, ids, probs)
    return jax.lax.scan(add, jnp.zeros(()), parts)[0]


@functools.cache
def _head_over(mesh: Mesh) -> Callable[..., tuple[Array, Array, Array]]:
    """`head_cross_entropy` of tokens that are divided over the devices, each of which cuts its own.

    XLA alone would send every chunk to every device, and add up the kernel's gradient chunk by chunk.
    """
    axes = row_axes(mesh)
    rows, copied = PartitionSpec(axes), PartitionSpec()

    def on_each(function: Callable[..., Any], outputs: Any) -> Callable[..., Any]:
        specs = {"in_specs": (rows, copied, rows, rows), "out_specs": outputs}
        # Other axes of the mesh, which divide matrices, stay XLA's.
        return jax.shard_map(function, mesh=mesh, axis_names=set(axes), check_vma=False, **specs)

    def forward(*arguments: Any) -> Any:
        def own(*arrays: Array) -> Any:
            sums, (dhidden, dkernel) = _forward(*arrays, *arguments[4:])
            return jax.lax.psum(sums, axes), (dhidden, jax.lax.psum(dkernel, axes))

        return on_each(own, (copied, (rows, copied)))(*arguments[:4])

    @with_gradient(forward, _backward, settings=(4, 5))
    def over_devices(*arguments: Any) -> tuple[Array, Array, Array]:
        def own(*arrays: Array) -> Any:
            hidden, kernel, targets, weights = arrays
            sums = head_cross_entropy(hidden, kernel, targets, weights, *arguments[4:])
            return jax.lax.psum(sums, axes)

        return on_each(own, copied)(*arguments[:4])

    return over_devices


def loss_and_metrics(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    batch: Batch,
    config: LossConfig,
    dropout_rng: Array | None,
    teacher_weight: float = 0.0,
) -> tuple[Array, Metrics]:
    """The loss that is differentiated, and what is reported about it.

    Args:
      model: the model.
      params: flat parameters.
      batch: T5X's features.
      config: weights of the parts.
      dropout_rng: a key for training (and the training capacity factor), None for evaluation.
      teacher_weight: share of a teacher's probabilities, where the batch has some (`training.teacher`).

    Returns:
      The total loss (float32 scalar) and metrics: sums `correct`, `weights`; scalars `loss`, `z_loss`,
      `cross_ent_loss` (against the targets), with a teacher `teacher_cross_ent_loss`, `experts/*` as T5X
      reports them (losses weighted, the rest means over sparse layers), and per sparse layer
      everything `MoeLayer` sows, at `router/<layer path>/<name>`.
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
    devices = rows_over(model.mesh)
    spread = model.mesh is not None and devices > 1 and targets.size % devices == 0
    head = _head_over(model.mesh) if spread else head_cross_entropy
    tokens = (
        hidden.reshape(targets.size, -1),
        params[HEAD],
        targets.reshape(-1),
        weights.reshape(-1) / normalizer,
    )
    token_part, z_loss, correct = head(*tokens, config.z_loss, config.label_smoothing)

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
    if training and TEACHER_IDS in batch:
        ids, probs = (
            batch[name].reshape(targets.size, -1) for name in (TEACHER_IDS, TEACHER_PROBS)
        )
        excess = towards_teacher(*tokens, ids, probs)
        loss = loss + teacher_weight * excess
        metrics["teacher_cross_ent_loss"] = metrics["cross_ent_loss"] + excess
        metrics["loss"] = loss
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
