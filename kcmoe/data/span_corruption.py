# SPDX-License-Identifier: Apache-2.0
"""T5's span corruption in NumPy, for whole batches at once.

Same function as t5.data.preprocessors (t5 0.9.4: random_spans_helper, random_spans_noise_mask,
noise_span_to_unique_sentinel, nonnoise_span_to_unique_sentinel): the same noise mask gives the same
inputs and targets, and spans have the same distribution (Raffel et al. 2020, section 3.1.4). The random
numbers differ: they are a function of a row's key alone, so that any row can be made at any time.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kcmoe.data.shuffle import hashes
from kcmoe.errors import UserError


@dataclasses.dataclass(frozen=True)
class Noise:
    """Share of tokens removed and mean length of a removed span, in tokens."""

    density: float = 0.15
    mean_span: float = 3.0


PRETRAINING = Noise()


@dataclasses.dataclass(frozen=True)
class Counts:
    """How a segment of `tokens` splits: so many noise tokens in so many spans."""

    tokens: int
    noise: int
    spans: int

    @property
    def inputs(self) -> int:
        """Length of the inputs with one sentinel per span and EOS."""
        return self.tokens - self.noise + self.spans + 1

    @property
    def targets(self) -> int:
        """Length of the targets with one sentinel per span and EOS."""
        return self.noise + self.spans + 1


def segment_counts(inputs_length: int, noise: Noise = PRETRAINING) -> Counts:
    """The longest segment whose corrupted inputs, EOS included, fit `inputs_length`.

    512 gives 568 tokens and targets of 114, as in T5's pretraining.
    """
    tokens = inputs_length - 1

    def at(count: int) -> Counts:
        # Python's round, half to even, as in random_spans_helper.
        removed = round(count * noise.density)
        return Counts(count, removed, round(removed / noise.mean_span))

    while at(tokens + 1).inputs <= inputs_length:
        tokens += 1
    # random_spans_helper evens the two lengths at this density.
    if noise.density == 0.5 and at(tokens).targets > at(tokens).inputs:
        tokens -= 1
    return at(tokens)


def mask_counts(length: int, noise: Noise = PRETRAINING) -> Counts:
    """Noise tokens and spans that random_spans_noise_mask puts in a segment of `length` tokens.

    It rounds in float32 and keeps at least one token of either kind.
    """
    length = max(length, 2)
    removed = int(np.round(np.float32(length) * np.float32(noise.density)))
    removed = min(max(removed, 1), length - 1)
    spans = max(int(np.round(np.float32(removed) / np.float32(noise.mean_span))), 1)
    return Counts(length, removed, spans)


def check_lengths(
    inputs: int, targets: int, num_sentinels: int, noise: Noise = PRETRAINING
) -> Counts:
    """The segment for these feature lengths.

    Raises:
      UserError: if targets do not fit, or there are more spans than sentinels.
    """
    # The mask rounds in float32 and never to nothing; what it gives is what must fit.
    counts = mask_counts(segment_counts(inputs, noise).tokens, noise)
    if counts.inputs > inputs or counts.tokens - counts.noise < counts.spans:
        raise UserError(f"TASK_FEATURE_LENGTHS inputs {inputs} is too short for span corruption")
    if counts.targets > targets:
        raise UserError(
            f"TASK_FEATURE_LENGTHS: inputs of {inputs} give targets of {counts.targets}, but targets is "
            f"{targets}; set it to {counts.targets} or more"
        )
    if counts.spans > num_sentinels:
        raise UserError(
            f"inputs of {inputs} have {counts.spans} noise spans, but the vocabulary has "
            f"{num_sentinels} sentinels; `kcmoe tokenizer add-sentinels` appends them to one without"
        )
    return counts


def _span_lengths(items: int, spans: int, keys: np.ndarray) -> np.ndarray:
    """Cuts `items` into `spans` parts of at least one, uniformly over all ways; int64 [B, spans]."""
    batch = keys.shape[0]
    if spans == 1:
        return np.full((batch, 1), items)
    # The spans - 1 places with the smallest random numbers among the items - 1 gaps are a uniform subset.
    scores = hashes(keys[:, None], np.arange(items - 1))
    cuts = np.sort(np.argpartition(scores, spans - 2, axis=1)[:, : spans - 1], axis=1) + 1
    ends = np.concatenate([cuts, np.full((batch, 1), items)], axis=1)
    return np.diff(ends, axis=1, prepend=0)


def noise_masks(keys: np.ndarray, length: int, noise: Noise = PRETRAINING) -> np.ndarray:
    """Noise masks, one per key.

    Args:
      keys: uint64 [B].
      length: tokens per segment.
      noise: density and mean span.

    Returns:
      bool [B, length], True where a token is removed. The first token never is, the last always is.
    """
    counts = mask_counts(length, noise)
    removed = _span_lengths(counts.noise, counts.spans, hashes(keys, np.uint64(1)))
    kept = _span_lengths(counts.tokens - counts.noise, counts.spans, hashes(keys, np.uint64(2)))
    both = np.stack([kept, removed], axis=2).reshape(keys.shape[0], -1)
    starts = np.cumsum(both, axis=1)[:, :-1]
    flips = np.zeros((keys.shape[0], counts.tokens), np.int8)
    np.put_along_axis(flips, starts, 1, axis=1)
    return (np.cumsum(flips, axis=1, dtype=np.int16) & 1).astype(bool)[:, :length]


def spans_to_sentinels(
    tokens: np.ndarray, mask: np.ndarray, first_sentinel: int
) -> tuple[np.ndarray, np.ndarray]:
    """Puts one sentinel for each run of True in `mask`, counting down from `first_sentinel`.

    Args:
      tokens: int [..., L].
      mask: bool [..., L].
      first_sentinel: id of sentinel 0.

    Returns:
      int32 [..., L] tokens, and bool [..., L] that says which of them to keep.
    """
    starts = mask.copy()
    starts[..., 1:] &= ~mask[..., :-1]
    sentinels = first_sentinel + 1 - np.cumsum(starts, axis=-1, dtype=np.int32)
    return np.where(starts, sentinels, tokens).astype(np.int32), starts | ~mask


def corrupt(
    tokens: np.ndarray, mask: np.ndarray, first_sentinel: int, eos: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of segments whose masks all have the same counts.

    Args:
      tokens: int [B, L].
      mask: bool [B, L]; every row has the same number of noise tokens and spans.
      first_sentinel: id of sentinel 0.
      eos: id put at the end of both, or None.

    Returns:
      int32 inputs [B, I] and targets [B, T].
    """
    both = []
    for removed in (mask, ~mask):
        values, keep = spans_to_sentinels(tokens, removed, first_sentinel)
        rows = values[keep].reshape(tokens.shape[0], -1)
        end = np.full((tokens.shape[0], 0 if eos is None else 1), eos or 0, np.int32)
        both.append(np.concatenate([rows, end], axis=1))
    return both[0], both[1]
