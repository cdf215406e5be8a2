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


@dataclasses.dataclass(frozen=True)
class Side:
    """Inputs or targets of a batch, int32 [B, length] each, 0 where nothing stands.

    Attributes:
      tokens: ids.
      segment_ids: 1 for the first sequence of a row, 2 for the second, and so on.
      positions: place of a token within its sequence, from 0.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray


def one_per_row(sequences: np.ndarray, length: int) -> Side:
    """Rows that hold one sequence each, int [B, <= length], which may be padded with 0."""
    tokens = np.zeros((sequences.shape[0], length), np.int32)
    tokens[:, : sequences.shape[1]] = sequences
    segment_ids = (tokens > 0).astype(np.int32)
    return Side(tokens, segment_ids, np.arange(length, dtype=np.int32) * segment_ids)


def several_per_row(
    sequences: Ragged, members: np.ndarray, rows: np.ndarray, num_rows: int, length: int
) -> Side:
    """Rows that hold any number of sequences, one after the other.

    Args:
      sequences: from which to take.
      members: int64 [M] numbers of sequences, those of one row together and not longer than it.
      rows: int64 [M] row of each member, never falling.
      num_rows: rows to make; those without a member are padding.
      length: tokens per row.
    """
    first = np.searchsorted(rows, rows)  # place of a row's first member
    sizes = sequences.lengths[members]
    ends = np.cumsum(sizes)
    columns = ends - sizes - (ends - sizes)[first]
    source, row, column = sequences.cells(members, rows, columns)
    tokens, segment_ids, positions = np.zeros((3, num_rows, length), np.int32)
    tokens[row, column] = sequences.tokens[source]
    segment_ids[row, column] = np.repeat(np.arange(members.size) - first + 1, sizes)
    positions[row, column] = column - np.repeat(columns, sizes)
    return Side(tokens, segment_ids, positions)


def model_features(inputs: Side, targets: Side, pack: bool) -> Features:
    """The arrays that the model takes; with `pack` also segment ids and positions.

    Without `pack` a row has one sequence at most, and the EOS of its targets is a decoder input, too.
    """
    features = {
        "encoder_input_tokens": inputs.tokens,
        "decoder_target_tokens": targets.tokens,
        "decoder_input_tokens": decoder_inputs(
            targets.tokens, targets.segment_ids if pack else None
        ),
        "decoder_loss_weights": (targets.tokens > 0).astype(np.int32),
    }
    if pack:
        features["encoder_segment_ids"] = inputs.segment_ids
        features["decoder_segment_ids"] = targets.segment_ids
        features["encoder_positions"] = inputs.positions
        features["decoder_positions"] = targets.positions
    return features
