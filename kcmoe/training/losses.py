# SPDX-License-Identifier: Apache-2.0
"""The loss of ST-MoE: cross-entropy with z-loss, plus the routers' balance and z losses.

Numbers are T5X's (t5x@cc342d4:t5x/losses.py and t5x/contrib/moe/models.py). Difference: targets are looked
up instead of being multiplied in as one-hot vectors of the vocabulary's length.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kcmoe.config import GinConfig, macro
from kcmoe.errors import UserError
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.training.state import flattened, nested

Batch = Mapping[str, Array]
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(GinConfig):
    """Weights of the parts of the loss."""

    z_loss: float = macro("Z_LOSS", help="weight of log(Z)^2 of the output logits")
    label_smoothing: float = macro("LABEL_SMOOTHING", help="probability spread over wrong targets")
    normalizing_factor: Literal["NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS"] = macro(
        "LOSS_NORMALIZING_FACTOR", help="what the summed loss is divided by"
    )
    aux_loss_factor: float = macro("AUX_LOSS_FACTOR", help="weight of the load balance loss")
    router_z_loss_factor: float = macro("ROUTER_Z_LOSS_FACTOR", help="weight of the router z-loss")

    def check(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"LABEL_SMOOTHING = {self.label_smoothing}, but it must be in [0, 1)")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def cross_entropy(
    logits: Array, targets: Array, z_loss: float, label_smoothing: float
) -> tuple[Array, Array, Array]:
    """Token losses.

    With Z the sum of exp(logits): log Z - logit[target] + z_loss * (log Z)^2. With label smoothing s the
    target is 1 - s on the right id and s / (V - 1) on the others, and the entropy of that target is
    subtracted, so that the best reachable loss is 0.

    Args:
      logits: float32[..., V].
      targets: int32[...].
      z_loss: weight of the (log Z)^2 term.
      label_smoothing: s.

    Returns:
      loss float32[...] with the z term, the z term alone, and whether the target has the largest logit.
    """
    return _cross_entropy_fwd(logits, targets, z_loss, label_smoothing)[0]


def _cross_entropy_fwd(
    logits: Array, targets: Array, z_loss: float, label_smoothing: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
    largest = jnp.max(logits, axis=-1)
    log_z = jnp.log(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1)) + largest
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = log_z - target_logit
    if label_smoothing:
        vocab = logits.shape[-1]
        right, wrong = 1.0 - label_smoothing, label_smoothing / (vocab - 1)
        others = log_z * (vocab - 1) - (jnp.sum(logits, axis=-1) - target_logit)
        entropy = -(right * np.log(right) + (vocab - 1) * wrong * np.log(wrong + 1e-20))
        loss = right * loss + wrong * others - entropy
    z_term = z_loss * jnp.square(log_z)
    correct = (target_logit >= largest).astype(jnp.float32)
    return (loss + z_term, z_term, correct), (logits, targets, log_z)


def _cross_entropy_bwd(
    z_loss: float,
    label_smoothing: float,
    saved: tuple[Array, Array, Array],
    grads: tuple[Array, Array, Array],
) -> tuple[Array, Any]:
    logits, targets, log_z = saved
    dloss = grads[0]  # the other two outputs are for reports only
    vocab = logits.shape[-1]
    wrong = label_smoothing / (vocab - 1)
    is_target = targets[..., None] == jnp.arange(vocab, dtype=targets.dtype)
    target_probs = jnp.where(is_target, 1.0 - label_smoothing, wrong)
    probs = jnp.exp(logits - log_z[..., None])
    dlogits = (1.0 + 2.0 * z_loss * log_z)[..., None] * probs - target_probs
    return dloss[..., None] * dlogits, np.zeros(targets.shape, jax.dtypes.float0)


cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


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
    logits, sown = model.apply(
        {"params": nested(params)},
        **features(batch),
        enable_dropout=training,
        mutable=["intermediates"],
        rngs={"dropout": dropout_rng} if training else None,
    )
    targets, weights = batch["decoder_target_tokens"], loss_weights(batch)
    token_loss, token_z_loss, correct = cross_entropy(
        logits, targets, config.z_loss, config.label_smoothing
    )
    num_weights = jnp.sum(weights)
    if config.normalizing_factor == "NUM_REAL_TARGET_TOKENS":
        normalizer = num_weights
    else:
        normalizer = jnp.asarray(targets.size, jnp.float32)
    z_loss = jnp.sum(token_z_loss * weights / normalizer)
    token_part = jnp.sum(token_loss * weights / normalizer)

    report = flattened(sown.get("intermediates", {}))
    means = _means_over_layers(report)
    aux_loss = config.aux_loss_factor * means.get("auxiliary_loss", jnp.zeros(()))
    router_z_loss = config.router_z_loss_factor * means.get("router_z_loss", jnp.zeros(()))
    loss = token_part + aux_loss + router_z_loss
    metrics = {
        "loss": loss,
        "cross_ent_loss": loss - z_loss - aux_loss - router_z_loss,
        "z_loss": z_loss,
        "correct": jnp.sum(correct * weights),
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
