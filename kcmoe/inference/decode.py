# SPDX-License-Identifier: Apache-2.0
"""Beam search with a cache; one beam is greedy search.

The search is T5X's (t5x@cc342d4:t5x/decoding.py::beam_search): of all continuations the 2 * beams best are
kept, finished ones are scored with the brevity penalty ((5 + length) / 6)^alpha of Wu et al.,
arXiv:1609.08144, eq. 14, and the search ends when no live beam can still win. Differences: beams are moved by
gathers, not one-hot products, cross-attention keys are shared by the beams of an input, and the encoder is
told nothing of beams.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from kcmoe.inference.logits import best_continuations
from kcmoe.model.encoder_decoder import Cache, EncoderDecoder
from kcmoe.tree import nested

NEGATIVE = -1.0e7  # T5X's minus infinity: finite, so that sums of it stay ordered


class _State(NamedTuple):
    """What a step of the search changes.

    position: int32 scalar, the position just filled. live_*: running sequences, worst first.
    finished_*: ended ones, worst first. Sequences are int32[B, beams, length + 1], starting with
    the zero the decoder starts from.
    """

    position: Array
    live_log_probs: Array
    live_sequences: Array
    finished_scores: Array
    finished_sequences: Array
    finished: Array
    cache: Cache


@functools.partial(jax.jit, static_argnames=("model", "max_decode_len", "beam_size"))
def beam_search(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    encoder_input_tokens: Array,
    alpha: float | Array = 0.6,
    eos_id: int | Array = 1,
    *,
    max_decode_len: int,
    beam_size: int = 1,
) -> tuple[Array, Array]:
    """Searches for likely targets.

    Args:
      model: the model.
      params: flat parameters.
      encoder_input_tokens: int32[B, S], 0 is padding.
      alpha: strength of the brevity penalty; as an array, one program serves all strengths.
      eos_id: id that ends a sequence, or int32[N], each of which does.
      max_decode_len: longest target, in tokens, the end of sequence included.
      beam_size: beams kept per input.

    Returns:
      tokens int32[B, beams, max_decode_len], best beam last, 0 after the end and never before the
      first other id; scores float32[B, beams].
      A beam that never ended has its plain log-probability as score, and only appears where no
      beam ended.
    """
    variables = {"params": nested(params)}
    encoded = model.apply(variables, encoder_input_tokens, method="encode")
    length = max_decode_len + 1
    cache = model.apply(variables, encoded, beam_size, max_decode_len, method="start_cache")
    batch = encoder_input_tokens.shape[0]
    start = _State(
        position=jnp.zeros((), jnp.int32),
        live_log_probs=jnp.tile(
            jnp.array([0.0] + [NEGATIVE] * (beam_size - 1), jnp.float32), (batch, 1)
        ),
        live_sequences=jnp.zeros((batch, beam_size, length), jnp.int32),
        finished_scores=jnp.full((batch, beam_size), NEGATIVE, jnp.float32),
        finished_sequences=jnp.zeros((batch, beam_size, length), jnp.int32),
        finished=jnp.zeros((batch, beam_size), bool),
        cache=cache,
    )

    def step(state: _State) -> _State:
        ids = jax.lax.dynamic_index_in_dim(state.live_sequences, state.position, 2, keepdims=False)
        logits, new_cache = model.apply(
            variables,
            state.cache,
            ids.reshape(-1),
            state.position,
            encoder_input_tokens,
            method="step",
        )
        return _advance(state, logits, new_cache, alpha, eos_id)

    state = jax.lax.while_loop(lambda s: _can_improve(s, length, alpha), step, start)
    none_finished = ~jnp.any(state.finished, axis=1)
    tokens = jnp.where(none_finished[:, None, None], state.live_sequences, state.finished_sequences)
    scores = jnp.where(none_finished[:, None], state.live_log_probs, state.finished_scores)
    return _left_align(tokens[:, :, 1:]), scores


def _left_align(tokens: Array) -> Array:
    """Moves leading padding behind the sequence, as T5X does with what it returns (`_left_align_prompts`).

    tokens: int32[..., L]. A beam may begin with id 0, which a user of the ids would read as padding; zeros
    further inside stay.
    """
    length = tokens.shape[-1]
    first = jnp.argmax(tokens != 0, axis=-1, keepdims=True)  # 0 where all is padding
    source = jnp.arange(length) + first
    moved = jnp.take_along_axis(tokens, jnp.minimum(source, length - 1), axis=-1)
    return jnp.where(source < length, moved, 0)


def _brevity_penalty(alpha: float | Array, length: Array | int) -> Array:
    return jnp.power((5.0 + jnp.float32(length)) / 6.0, alpha)


def _can_improve(state: _State, length: int, alpha: float | Array) -> Array:
    """Whether a live beam of any input may still beat the worst finished one."""
    best_live = state.live_log_probs[:, -1:] / _brevity_penalty(alpha, length)
    worst_finished = jnp.min(state.finished_scores, axis=1, keepdims=True)
    worst_finished = jnp.where(state.finished, worst_finished, NEGATIVE)
    settled = jnp.all(worst_finished > best_live)
    return (state.position < length - 1) & ~settled


def _advance(
    state: _State, logits: Array, cache: Cache, alpha: float | Array, eos_id: int | Array
) -> _State:
    """Extends every live beam by one token. logits: float32[B * beams, V]."""
    beams = state.live_log_probs.shape[1]
    keep = 2 * beams  # so that `beams` live ones remain even if `beams` of them end at once
    candidate_log_probs, parent, token = best_continuations(logits, state.live_log_probs, keep)
    sequences = jnp.take_along_axis(state.live_sequences, parent[:, :, None], axis=1)
    position = state.position + 1
    sequences = jax.lax.dynamic_update_slice_in_dim(sequences, token[:, :, None], position, axis=2)
    ended = jnp.isin(token, eos_id)

    live_log_probs = candidate_log_probs + jnp.where(ended, NEGATIVE, 0.0)
    best_live = _best(live_log_probs, beams)
    live_parent = jnp.take_along_axis(parent, best_live, axis=1)

    scores = candidate_log_probs / _brevity_penalty(alpha, position)
    scores += jnp.where(ended, 0.0, NEGATIVE)
    all_scores = jnp.concatenate([state.finished_scores, scores], axis=1)
    all_sequences = jnp.concatenate([state.finished_sequences, sequences], axis=1)
    all_ended = jnp.concatenate([state.finished, ended], axis=1)
    best_finished = _best(all_scores, beams)
    return _State(
        position=position,
        live_log_probs=jnp.take_along_axis(live_log_probs, best_live, axis=1),
        live_sequences=jnp.take_along_axis(sequences, best_live[:, :, None], axis=1),
        finished_scores=jnp.take_along_axis(all_scores, best_finished, axis=1),
        finished_sequences=jnp.take_along_axis(all_sequences, best_finished[:, :, None], axis=1),
        finished=jnp.take_along_axis(all_ended, best_finished, axis=1),
        cache=_reorder(cache, live_parent),
    )


def _best(scores: Array, count: int) -> Array:
    """int32[B, count]: indices of the largest scores, the largest last."""
    return jnp.flip(jax.lax.top_k(scores, count)[1], axis=1)


def _reorder(cache: Cache, parent: Array) -> Cache:
    """Gives each beam the self-attention cache of the beam it continues; the rest is shared by beams."""
    batch, beams = parent.shape
    if beams == 1:
        return cache
    rows = (jnp.arange(batch)[:, None] * beams + parent).reshape(-1)

    def reorder(name: str, entry: Any) -> Any:
        if not name.startswith("layers_"):
            return entry
        return {**entry, "key": entry["key"][rows], "value": entry["value"][rows]}

    return {name: reorder(name, entry) for name, entry in cache.items()}
