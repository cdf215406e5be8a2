# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods of given targets: of one per input, or of every label word for every input."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.training.losses import features, loss_weights
from kcmoe.training.state import nested


def token_log_likelihoods(logits: Array, targets: Array) -> Array:
    """float32[..., V], int32[...] -> float32[...]: log softmax at the targets."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


@functools.partial(jax.jit, static_argnames=("model",))
def target_log_likelihoods(
    model: EncoderDecoder, params: Mapping[str, Any], batch: Mapping[str, Array]
) -> Array:
    """Sum of the targets' token log-likelihoods, as T5X's `score_batch`.

    Args:
      model: the model.
      params: flat parameters.
      batch: T5X's features, not packed.

    Returns:
      float32[B].
    """
    logits = model.apply({"params": nested(params)}, **features(batch))
    log_likelihoods = token_log_likelihoods(logits, batch["decoder_target_tokens"])
    return jnp.sum(log_likelihoods * loss_weights(batch), axis=-1)


@functools.partial(jax.jit, static_argnames=("model",))
def label_log_likelihoods(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    encoder_input_tokens: Array,
    label_ids: Array,
) -> Array:
    """Log-likelihood of each label for each input; the encoder runs once per input.

    Args:
      model: the model.
      params: flat parameters.
      encoder_input_tokens: int32[B, S], 0 is padding.
      label_ids: int32[K, L], the label words' ids with end of sequence, 0 is padding.

    Returns:
      float32[B, K].
    """
    variables = {"params": nested(params)}
    batch, labels = encoder_input_tokens.shape[0], label_ids.shape[0]
    encoded = model.apply(variables, encoder_input_tokens, method="encode")
    targets = jnp.tile(label_ids, (batch, 1))  # [B * K, L]
    inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    logits = model.apply(
        variables,
        jnp.repeat(encoded, labels, axis=0),
        jnp.repeat(encoder_input_tokens, labels, axis=0),
        inputs,
        targets,
        method="decode",
    )
    log_likelihoods = token_log_likelihoods(logits, targets) * (targets > 0)
    return jnp.sum(log_likelihoods, axis=-1).reshape(batch, labels)
