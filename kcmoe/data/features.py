# SPDX-License-Identifier: Apache-2.0
"""Token ids -> the arrays a training or evaluation step takes, under T5X's names.

Same values as SeqIO's EncDecFeatureConverter: decoder inputs are the targets moved right by one with a 0
in front; in packed rows each segment starts with 0 again, and positions and segment ids of padding are 0.
Everything is int32. Loss weights are 1 on real target tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kcmoe import fits

Features = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens per row, EOS included."""

    inputs: int
    targets: int

    @classmethod
    def of(cls, lengths: Mapping[str, int] | Lengths) -> Lengths:
        """From `TASK_FEATURE_LENGTHS`; `UserError` if it lacks one or it is too short."""
        if isinstance(lengths, Lengths):
            return lengths
        return cls(**fits.check_lengths(lengths))


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths in one array: sequence i is `tokens[starts[i]:starts[i + 1]]`."""

    tokens: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int] | np.ndarray], dtype: type = np.uint16) -> Ragged:
        """Gathers sequences of ids; `dtype` must hold the vocabulary."""
        arrays: list[np.ndarray] = [np.asarray(s, dtype) for s in sequences]
        starts = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([a.size for a in arrays], out=starts[1:])
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, dtype), starts)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]."""
        return np.diff(self.starts)

    def cells(
        self, sequences: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places in `tokens`, rows and columns that put sequence `sequences[k]` at (rows[k], columns[k]).

        `out[row, column] = tokens[place]` does so for all k at once.
        """
        lengths = self.lengths[sequences]
        offsets = np.cumsum(lengths) - lengths
        within = np.arange(lengths.sum()) - np.repeat(offsets, lengths)
        source = np.repeat(self.starts[sequences], lengths) + within
        return source, np.repeat(rows, lengths), np.repeat(columns, lengths) + within


def with_eos(ids: Sequence[int], length: int, eos: int) -> list[int]:
    """`ids` and EOS, cut so that both fit `length`; t5's append_eos_after_trim."""
    return [*ids[: length - 1], eos]


def decoder_inputs(targets: np.ndarray, segment_ids: np.ndarray | None = None) -> np.ndarray:
    """Targets [B, L] moved right by one; with segment ids each segment (and padding) starts with 0."""
    shifted = np.zeros_like(targets)
    shifted[:, 1:] = targets[:, :-1]
    if segment_ids is not None:
        shifted[:, 1:] *= segment_ids[:, 1:] == segment_ids[:, :-1]
    return shifted


def single_features(
    inputs: np.ndarray, targets: np.ndarray, lengths: Lengths, pack: bool
) -> Features:
    """Features of one sequence per row, padded with 0; int [B, <= length] in, int32 [B, length] out."""
    encoder = np.zeros((inputs.shape[0], lengths.inputs), np.int32)
    decoder = np.zeros((targets.shape[0], lengths.targets), np.int32)
    encoder[:, : inputs.shape[1]] = inputs
    decoder[:, : targets.shape[1]] = targets
    if not pack:
        return _features(encoder, decoder)
    segments = [(x > 0).astype(np.int32) for x in (encoder, decoder)]
    positions = [np.arange(s.shape[1], dtype=np.int32) * s for s in segments]
    return _features(encoder, decoder, segments, positions)


def packed_features(
    inputs: Ragged,
    targets: Ragged,
    members: np.ndarray,
    rows: np.ndarray,
    num_rows: int,
    lengths: Lengths,
    pack: bool = True,
) -> Features:
    """Features of rows that hold several examples each.

    Args:
      inputs: sequences with EOS, none longer than `lengths.inputs`.
      targets: the same for targets.
      members: int64 [M] example numbers, those of one row together.
      rows: int64 [M] row of each member, never falling.
      num_rows: rows to make; those without a member are padding.
      lengths: tokens per row.
      pack: whether to add segment ids and positions (without, each row has at most one member).
    """
    first = np.searchsorted(rows, rows)  # place of a row's first member
    segment = np.arange(members.size) - first + 1
    tokens, segments, positions = [], [], []
    for ragged, length in ((inputs, lengths.inputs), (targets, lengths.targets)):
        sizes = ragged.lengths[members]
        ends = np.cumsum(sizes)
        columns = ends - sizes - (ends - sizes)[first]
        out = np.zeros((3 if pack else 1, num_rows, length), np.int32)
        source, row, column = ragged.cells(members, rows, columns)
        out[0, row, column] = ragged.tokens[source]
        if pack:
            out[1, row, column] = np.repeat(segment, sizes)
            out[2, row, column] = column - np.repeat(columns, sizes)
            segments.append(out[1])
            positions.append(out[2])
        tokens.append(out[0])
    return _features(tokens[0], tokens[1], segments, positions)


def _features(
    encoder: np.ndarray,
    decoder: np.ndarray,
    segments: Sequence[np.ndarray] = (),
    positions: Sequence[np.ndarray] = (),
) -> Features:
    features = {
        "encoder_input_tokens": encoder,
        "decoder_target_tokens": decoder,
        "decoder_input_tokens": decoder_inputs(decoder, segments[1] if segments else None),
        "decoder_loss_weights": (decoder > 0).astype(np.int32),
    }
    if segments:
        features["encoder_segment_ids"], features["decoder_segment_ids"] = segments
        features["encoder_positions"], features["decoder_positions"] = positions
    return features
