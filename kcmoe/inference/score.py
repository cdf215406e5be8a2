# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods of given targets: of one per input, or of every label word for every input."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kcmoe.inference.logits import log_normaliser
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.model.interface import HEAD, features, loss_weights
from kcmoe.model.layers import product
from kcmoe.tree import nested

# Decoder positions computed at once on CPUs. XLA takes other kernels there, with other bits, for few of them,
# so a line alone is computed in a part as large as those of many lines. Larger parts are no faster.
_POSITIONS = 48


def token_log_likelihoods(logits: Array, targets: Array) -> Array:
    """float32[..., V], int32[...] -> float32[...]: log softmax at the targets."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - log_normaliser(logits)


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


@functools.partial(jax.jit, static_argnames=("model",))
def label_log_likelihoods(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    encoder_input_tokens: Array,
    ids: Array,
    depths: Array,
    within: Array,
    nodes: Array,
    targets: Array,
) -> Array:
    """Log-likelihood of each label for each input.

    The beginnings of all labels are decoded side by side in one row, each seeing the whole input and what it
    begins with itself: encoder, keys and values of the input, and what labels share are computed once.

    Args:
      model: the model.
      params: flat parameters.
      encoder_input_tokens: int32[B, S], 0 is padding.
      ids, depths, within, nodes, targets: the labels' `LabelTree`.

    Returns:
      float32[B, K].
    """
    variables = {"params": nested(params)}
    encoded = model.apply(variables, encoder_input_tokens, method="encode")

    def some_rows(rows: tuple[Array, Array]) -> Array:
        hidden = model.apply(variables, *rows, ids, depths, within, method="decode_tree")
        hidden = hidden[: encoded.shape[0]]  # what fills a part up needs no logits
        logits = product(hidden.astype(jnp.float32), params[HEAD])
        chosen = logits[:, nodes, targets] - log_normaliser(logits)[:, nodes]
        return jnp.sum(jnp.where(targets > 0, chosen, 0.0), axis=-1)

    rows = encoded, encoder_input_tokens
    dispatch: str = model.config.dispatch  # "used" is `inference_config`'s, on CPUs
    if dispatch != "used":
        return some_rows(rows)
    return _in_parts(some_rows, rows, _POSITIONS // ids.shape[0])


def _in_parts(function: Callable[[Any], Array], rows: Any, most: int) -> Array:
    """function(rows), a part at a time: the largest power of two that is at most `most`, whatever the batch.

    Parts of few rows are filled with the first ones again.
    """
    batch = rows[0].shape[0]
    part = 1 << max(most, 1).bit_length() - 1
    filled = jnp.arange(-(-batch // part) * part) % batch
    parts = jax.tree.map(lambda a: a[filled].reshape(-1, part, *a.shape[1:]), rows)
    found = jax.lax.map(function, parts)
    return found.reshape(-1, *found.shape[2:])[:batch]
