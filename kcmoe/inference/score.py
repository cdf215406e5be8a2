# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods of given targets: of one per input, or of every label word for every input."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.interface import HEAD, features, loss_weights
from kcmoe.tree import nested


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
def target_scores(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    encoder_input_tokens: Array,
    decoder_target_tokens: Array,
) -> Array:
    """`target_log_likelihoods` of int32[B, S] and int32[B, L]; the targets are shifted here."""
    batch = {
        "encoder_input_tokens": encoder_input_tokens,
        "decoder_input_tokens": jnp.pad(decoder_target_tokens[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": decoder_target_tokens,
    }
    return target_log_likelihoods(model, params, batch)


@functools.partial(jax.jit, static_argnames=("model", "lengths"))
def label_log_likelihoods(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    encoder_input_tokens: Array,
    label_ids: Array,
    lengths: tuple[int, ...],
) -> Array:
    """Log-likelihood of each label for each input.

    The labels of an input are decoded side by side in one row, as packed examples that all see the whole
    input: encoder and cross-attention keys and values are computed once, and the output head once for
    the first position, which is the same for all labels.

    Args:
      model: the model.
      params: flat parameters.
      encoder_input_tokens: int32[B, S], 0 is padding.
      label_ids: int32[T], the label words' ids one after the other, each with end of sequence and then
        any number of 0, which count for nothing.
      lengths: ids of each of the K labels, at least 1; T together.

    Returns:
      float32[B, K].
    """
    batch = encoder_input_tokens.shape[0]
    ends = np.cumsum(lengths)
    starts = ends - lengths
    is_start = np.isin(np.arange(ends[-1]), starts)
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)

    def tiled(row: Array) -> Array:
        return jnp.broadcast_to(row, (batch, ends[-1]))

    variables = {"params": nested(params)}
    hidden = model.apply(
        variables,
        model.apply(variables, encoder_input_tokens, method="encode"),
        encoder_input_tokens,
        tiled(jnp.where(is_start, 0, jnp.roll(label_ids, 1))),
        tiled(label_ids),
        decoder_segment_ids=tiled(jnp.asarray(segments)),
        logits=False,
        method="decode",
    )
    computed = np.flatnonzero(~is_start | (np.arange(ends[-1]) == 0))
    logits = jnp.dot(hidden[:, computed].astype(jnp.float32), params[HEAD])
    row = np.searchsorted(computed, np.where(is_start, 0, np.arange(ends[-1])))
    log_likelihoods = logits[:, row, label_ids] - jax.nn.logsumexp(logits, axis=-1)[:, row]
    log_likelihoods = jnp.where(label_ids > 0, log_likelihoods, 0.0)
    return jnp.stack(
        [log_likelihoods[:, a:b].sum(axis=1) for a, b in zip(starts, ends, strict=True)], axis=1
    )
