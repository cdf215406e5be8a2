# SPDX-License-Identifier: Apache-2.0
"""Ranking, scoring and generating for any number of sequences of ids, in the order given.

Sequences are sorted into a few fixed shapes, so that short lines are not computed as long ones. Every length
has one shape, its number of rows included, and missing rows are filled with copies. So each line is computed
by the same program whatever stands around it; with dropless routing (`inference_config`) its result is then
the same bit for bit. Ids in, numbers and ids out; texts are `predict.py`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from kcmoe.config.model import ModelConfig
from kcmoe.inference.compute import Call, Compute, fetched
from kcmoe.inference.labels import LabelTree

Ids = Sequence[Sequence[int]]
Advance = Callable[[int], object]

# Close together where reviews and comments are, wider where few lines are: each length is one compile.
LENGTHS = (16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512)
# Tokens computed at once. On two CPU cores a small model is fastest where a batch stays in the caches; a
# large one should not let a single line wait for a batch. An accelerator wants many tokens.
_CPU_TOKENS, _CPU_TOKENS_LARGE, _ACCELERATOR_TOKENS = 1024, 256, 16384
_LARGE_PARAMETERS = 100_000_000
_EOS = 1
_IN_FLIGHT = 2  # batches dispatched before the first result is fetched


@dataclasses.dataclass(frozen=True)
class PaddedBatch:
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
    config: ModelConfig,
    routing: Literal["capacity", "dropless"] = "dropless",
    platform: str | None = None,
) -> ModelConfig:
    """The model as inference runs it: no token is dropped, nothing is recomputed.

    With `platform` "cpu" and nothing dropped, experts compute by the way that has no gradient.
    """
    dispatch: Any = config.dispatch
    if (platform, routing, dispatch) == ("cpu", "dropless", "auto"):
        dispatch = "used"
    return dataclasses.replace(config, routing=routing, remat=False, dispatch=dispatch)


def default_tokens(parameters: int, platform: str) -> int:
    """Tokens per batch that suit the device ("cpu", "gpu", "tpu") and a model of so many parameters."""
    if platform != "cpu":
        return _ACCELERATOR_TOKENS
    return _CPU_TOKENS if parameters < _LARGE_PARAMETERS else _CPU_TOKENS_LARGE


def padded_length(length: int, longest: int, among: Sequence[int] = LENGTHS) -> int:
    """The smallest of `among` that holds `length`, where `longest` bounds all lengths."""
    if length > longest:
        raise ValueError(f"a sequence of {length} tokens where at most {longest} are allowed")
    return next((one for one in among if length <= one < longest), longest)


def rows_of(lengths: Sequence[int], tokens: int) -> int:
    """Rows of a batch with these lengths: as many as `tokens` hold, by fours, at least 1."""
    rows = max(1, tokens // sum(lengths))
    return rows if rows < 4 else rows // 4 * 4


def batches(
    lengths: np.ndarray, longest: Sequence[int], tokens: int, among: Sequence[int] = LENGTHS
) -> list[PaddedBatch]:
    """Every sequence in exactly one batch.

    Args:
      lengths: int [N, kinds], tokens of each kind of sequence per line.
      longest: largest length allowed of each kind.
      tokens: about how many tokens to compute at once.
      among: lengths to which sequences are filled up.

    Returns:
      Batches, those of one shape together, short ones first; lines of like length share a batch.
    """
    rounded = [
        tuple(padded_length(int(n), most, among) for n, most in zip(line, longest, strict=True))
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
            found.append(PaddedBatch(indices[start : start + rows], rows, shape))
    return found


def run(
    plan: Sequence[PaddedBatch],
    compute: Callable[[PaddedBatch], Any],
    advance: Advance | None = None,
) -> Iterator[tuple[PaddedBatch, Any]]:
    """Yields each batch with `compute(batch)` as NumPy arrays, computing a little ahead.

    Args:
      plan: the batches.
      compute: dispatches the work, see `Compute`.
      advance: told how many lines are done after each batch.
    """
    pending: list[tuple[PaddedBatch, Any]] = []
    for batch in [*plan, *[None] * _IN_FLIGHT]:
        if batch is not None:
            pending.append((batch, compute(batch)))
        if pending and (batch is None or len(pending) > _IN_FLIGHT):
            done, result = pending.pop(0)
            yield done, fetched(result)
            if advance is not None:
                advance(len(done.indices))


@dataclasses.dataclass(frozen=True)
class BatchedModel:
    """A model in use, and in which shapes it computes.

    Attributes:
      model: expected to route without dropping, else a row's numbers depend on its neighbours.
      longest: tokens of the longest input.
      tokens: about how many input tokens to compute at once.
      shapes: lengths to which sequences are filled up; few where compiling costs more than padding.
    """

    model: Compute
    longest: int
    tokens: int
    shapes: Sequence[int] = LENGTHS

    def rank(self, inputs: Ids, labels: Ids, advance: Advance | None = None) -> np.ndarray:
        """Log-likelihood of every label for every input; each input is encoded once.

        Args:
          inputs: N sequences with EOS, none longer than `longest`.
          labels: K sequences with EOS.
          advance: told the number of inputs done.

        Returns:
          float32 [N, K].
        """
        tree = LabelTree.of(labels).arrays

        def arrays(batch: PaddedBatch) -> tuple[np.ndarray, ...]:
            return batch.pad(inputs), *tree

        scores = np.zeros((len(inputs), len(labels)), np.float32)
        plan = batches(_lengths(inputs), [self.longest], self.tokens, self.shapes)
        for batch, values in self._results("rank", plan, arrays, advance):
            scores[batch.indices] = values[: len(batch.indices)]
        return scores

    def score(self, inputs: Ids, targets: Ids, longest_target: int) -> np.ndarray:
        """Log-likelihood of `targets[i]` (with EOS) for `inputs[i]` -> float32 [N]."""

        def arrays(batch: PaddedBatch) -> tuple[np.ndarray, ...]:
            return batch.pad(inputs), batch.pad(targets, kind=1)

        scores = np.zeros(len(inputs), np.float32)
        lengths = np.concatenate([_lengths(inputs), _lengths(targets)], axis=1)
        plan = batches(lengths, (self.longest, longest_target), self.tokens, self.shapes)
        for batch, values in self._results("score", plan, arrays):
            scores[batch.indices] = values[: len(batch.indices)]
        return scores

    def generate(
        self,
        inputs: Ids,
        max_tokens: int,
        *,
        beam_size: int = 1,
        alpha: float = 0.6,
        advance: Advance | None = None,
    ) -> np.ndarray:
        """The best target of each input by beam search -> int32 [N, max_tokens], 0 after EOS."""
        strength, ends = np.asarray(alpha, np.float32), np.array([_EOS, _EOS], np.int32)

        def arrays(batch: PaddedBatch) -> tuple[np.ndarray, ...]:
            return batch.pad(inputs), strength, ends

        found = np.zeros((len(inputs), max_tokens), np.int32)
        tokens = max(1, self.tokens // beam_size)
        plan = batches(_lengths(inputs), [self.longest], tokens, self.shapes)
        settings = {"max_decode_len": max_tokens, "beam_size": beam_size}
        for batch, (best_last, _) in self._results("search", plan, arrays, advance, **settings):
            found[batch.indices] = best_last[: len(batch.indices), -1]
        return found

    def _results(
        self,
        name: str,
        plan: Sequence[PaddedBatch],
        arrays: Callable[[PaddedBatch], tuple[np.ndarray, ...]],
        advance: Advance | None = None,
        **settings: Any,
    ) -> Iterator[tuple[PaddedBatch, Any]]:
        """`run` of the function `name`, whose programs are made ready together."""
        one_of_each = {batch.lengths: batch for batch in plan}.values()
        self.model.prepare(Call.of(name, arrays(batch), settings) for batch in one_of_each)
        return run(plan, lambda batch: self.model(name, *arrays(batch), **settings), advance)


def _lengths(sequences: Ids) -> np.ndarray:
    return np.array([len(ids) for ids in sequences], np.int64).reshape(-1, 1)
