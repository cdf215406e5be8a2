# SPDX-License-Identifier: Apache-2.0
"""Sorts sequences into a few fixed shapes, so that short lines are not computed as long ones.

Every length has one shape, its number of rows included, and missing rows are filled with copies. So each
line is computed by the same program whatever stands around it; with dropless routing its result is then
the same bit for bit. Knows lengths and ids, never text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from kcmoe.config.model import ModelConfig

# Close together where reviews and comments are, wider where few lines are: each length is one compile.
LENGTHS = (16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512)
# Tokens computed at once. On two CPU cores a small model is fastest where a batch stays in the caches; a
# large one should not let a single line wait for a batch. An accelerator wants many tokens.
_CPU_TOKENS, _CPU_TOKENS_LARGE, _ACCELERATOR_TOKENS = 1024, 256, 16384
_LARGE_PARAMETERS = 100_000_000
_IN_FLIGHT = 2  # batches dispatched before the first result is fetched


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One batch of a fixed shape.

    Attributes:
      indices: int64 [n], positions in the caller's order of the rows that count, n <= rows.
      rows: rows to compute, a function of `lengths` alone.
      lengths: tokens per row of each kind of sequence, e.g. inputs and targets.
    """

    indices: np.ndarray
    rows: int
    lengths: tuple[int, ...]

    def pad(self, sequences: Sequence[Sequence[int]], kind: int = 0) -> np.ndarray:
        """int32 [rows, lengths[kind]]: the sequences of this batch, 0 behind them.

        Rows beyond the last sequence repeat the first one: they are never read, and all zeros would be
        a case of its own to the model.
        """
        padded = np.zeros((self.rows, self.lengths[kind]), np.int32)
        for row, index in enumerate(self.indices):
            ids = sequences[index]
            padded[row, : len(ids)] = ids
        padded[len(self.indices) :] = padded[0]
        return padded


def inference_config(
    config: ModelConfig, routing: Literal["capacity", "dropless"] = "dropless"
) -> ModelConfig:
    """The model as inference runs it: no token is dropped, nothing is recomputed."""
    return dataclasses.replace(config, routing=routing, remat=False)


def default_tokens(parameters: int) -> int:
    """Tokens per batch that suit the device and a model of so many parameters."""
    import jax

    if jax.default_backend() != "cpu":
        return _ACCELERATOR_TOKENS
    return _CPU_TOKENS if parameters < _LARGE_PARAMETERS else _CPU_TOKENS_LARGE


def bucket_length(length: int, longest: int) -> int:
    """The smallest of `LENGTHS` that holds `length`, where `longest` bounds all lengths."""
    if length > longest:
        raise ValueError(f"a sequence of {length} tokens where at most {longest} are allowed")
    return next((one for one in LENGTHS if length <= one < longest), longest)


def rows_of(lengths: Sequence[int], tokens: int) -> int:
    """Rows of a batch with these lengths: as many as `tokens` hold, by fours, at least 1."""
    rows = max(1, tokens // sum(lengths))
    return rows if rows < 4 else rows // 4 * 4


def buckets(lengths: np.ndarray, longest: Sequence[int], tokens: int) -> list[Bucket]:
    """Every sequence in exactly one batch.

    Args:
      lengths: int [N, kinds], tokens of each kind of sequence per line.
      longest: largest length allowed of each kind.
      tokens: about how many tokens to compute at once.

    Returns:
      Batches, those of one shape together, short ones first; lines of like length share a batch.
    """
    rounded = [
        tuple(bucket_length(int(n), most) for n, most in zip(line, longest, strict=True))
        for line in lengths
    ]
    members: dict[tuple[int, ...], list[int]] = {}
    for index, shape in enumerate(rounded):
        members.setdefault(shape, []).append(index)
    found = []
    for shape in sorted(members):
        rows = rows_of(shape, tokens)
        indices = np.array(members[shape])
        for start in range(0, len(indices), rows):
            found.append(Bucket(indices[start : start + rows], rows, shape))
    return found


def run(
    plan: Sequence[Bucket],
    compute: Callable[[Bucket], Any],
    advance: Callable[[int], object] | None = None,
) -> Iterator[tuple[Bucket, Any]]:
    """Yields each batch with `compute(batch)` as NumPy arrays, computing a little ahead.

    Args:
      plan: the batches.
      compute: dispatches the work and returns a tree of JAX arrays.
      advance: told how many lines are done after each batch.
    """
    import jax

    pending: list[tuple[Bucket, Any]] = []
    for bucket in [*plan, *[None] * _IN_FLIGHT]:
        if bucket is not None:
            pending.append((bucket, compute(bucket)))
        if pending and (bucket is None or len(pending) > _IN_FLIGHT):
            done, result = pending.pop(0)
            yield done, jax.device_get(result)
            if advance is not None:
                advance(len(done.indices))
