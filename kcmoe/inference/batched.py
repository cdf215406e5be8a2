# SPDX-License-Identifier: Apache-2.0
"""Ranking, scoring and generating for any number of sequences of ids, in buckets, in the order given.

Ids in, numbers and ids out; texts are `predict.py`'s. The model is expected to route without dropping
(`bucketing.inference_config`), else a row's numbers depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kcmoe.inference import bucketing
from kcmoe.model.encoder_decoder import EncoderDecoder

Ids = Sequence[Sequence[int]]
Advance = Callable[[int], object]


def rank(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    inputs: Ids,
    labels: Ids,
    *,
    longest: int,
    tokens: int,
    advance: Advance | None = None,
) -> np.ndarray:
    """Log-likelihood of every label for every input; each input is encoded once.

    Args:
      model: the model.
      params: flat parameters.
      inputs: N sequences with EOS, none longer than `longest`.
      labels: K sequences with EOS.
      longest: largest bucket.
      tokens: about how many input tokens to compute at once.
      advance: told the number of inputs done.

    Returns:
      float32 [N, K].
    """
    from kcmoe.inference.score import label_log_likelihoods

    joined = np.concatenate([np.asarray(ids, np.int32) for ids in labels])
    lengths = tuple(map(len, labels))

    def compute(bucket: bucketing.Bucket) -> Any:
        return label_log_likelihoods(model, params, bucket.pad(inputs), joined, lengths)

    scores = np.zeros((len(inputs), len(labels)), np.float32)
    plan = bucketing.buckets(_lengths(inputs), [longest], tokens)
    for bucket, values in bucketing.run(plan, compute, advance):
        scores[bucket.indices] = values[: len(bucket.indices)]
    return scores


def score(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    inputs: Ids,
    targets: Ids,
    *,
    longest: tuple[int, int],
    tokens: int,
) -> np.ndarray:
    """Log-likelihood of `targets[i]` (with EOS) for `inputs[i]` -> float32 [N]."""
    from kcmoe.inference.score import target_log_likelihoods

    def compute(bucket: bucketing.Bucket) -> Any:
        target = bucket.pad(targets, kind=1)
        features = {
            "encoder_input_tokens": bucket.pad(inputs),
            "decoder_input_tokens": np.pad(target[:, :-1], ((0, 0), (1, 0))),
            "decoder_target_tokens": target,
        }
        return target_log_likelihoods(model, params, features)

    scores = np.zeros(len(inputs), np.float32)
    lengths = np.concatenate([_lengths(inputs), _lengths(targets)], axis=1)
    plan = bucketing.buckets(lengths, longest, tokens)
    for bucket, values in bucketing.run(plan, compute):
        scores[bucket.indices] = values[: len(bucket.indices)]
    return scores


def generate(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    inputs: Ids,
    *,
    longest: int,
    tokens: int,
    max_tokens: int,
    beam_size: int = 1,
    alpha: float = 0.6,
    advance: Advance | None = None,
) -> np.ndarray:
    """The best target of each input by beam search -> int32 [N, max_tokens], 0 after EOS."""
    from kcmoe.inference.decode import beam_search

    def compute(bucket: bucketing.Bucket) -> Any:
        best_last, _ = beam_search(
            model,
            params,
            bucket.pad(inputs),
            max_decode_len=max_tokens,
            beam_size=beam_size,
            alpha=alpha,
        )
        return best_last[:, -1]

    found = np.zeros((len(inputs), max_tokens), np.int32)
    plan = bucketing.buckets(_lengths(inputs), [longest], max(1, tokens // beam_size))
    for bucket, best in bucketing.run(plan, compute, advance):
        found[bucket.indices] = best[: len(bucket.indices)]
    return found


def _lengths(sequences: Ids) -> np.ndarray:
    return np.array([len(ids) for ids in sequences], np.int64).reshape(-1, 1)
