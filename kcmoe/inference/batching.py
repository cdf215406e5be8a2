# SPDX-License-Identifier: Apache-2.0
"""Ranking, scoring and generating for any number of sequences of ids, in the order given.

Sequences are sorted into a few fixed shapes, so that short lines are not computed as long ones. Every length
has one shape, its number of rows included, and missing rows are filled with copies. So each line is computed
by the same program whatever stands around it; with dropless routing (`inference_config`) its result is then
the same bit for bit. Few lines are computed in fewer rows, by a program that was seen to give the same bits
(`few.py`). Ids in, numbers and ids out; texts are `predict.py`'s.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
# One line alone need not wait for a whole batch of copies, where a smaller one gives the same bits. From some
# 64 tokens on, and from two rows on, XLA's CPU programs mostly do; each is tried before it is used.
_FEW_TOKENS, _FEW_BATCHES = 64, 3
# Sequences in a step of a search. On CPUs a step costs little more for twice as many, and up to here products
# are one kernel of XLA, so that fewer rows give the same bits.
_STEP = 48
PATIENCE = 20  # times that few lines of a length come before seconds are spent on trying


@dataclasses.dataclass(frozen=True)
class PaddedBatch:
    """One batch of a fixed shape.

    Attributes:
      indices: int64 [n], positions in the caller's order of the rows that count, n <= rows.
      rows: rows to compute.
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


def search_rows(lengths: Sequence[int], tokens: int, beams: int) -> int:
    """Rows of a batch whose lines are continued by so many beams each."""
    rows = tokens // sum(lengths)
    if rows <= _STEP + _STEP // 2:
        rows = min(2 * rows, _STEP)
    return rows_of((1,), rows // beams)


def few_rows(batch: PaddedBatch) -> list[int]:
    """Numbers of rows to try for a batch that has few lines, the smallest first; none where it has many."""
    least = 1 << (-(-_FEW_TOKENS // sum(batch.lengths)) - 1).bit_length()
    if sum(batch.lengths) < _FEW_TOKENS:
        least = max(least, 2)
    found = [rows for rows in (least, 2 * least) if 2 * rows <= batch.rows]
    if found and len(batch.indices) <= _FEW_BATCHES * found[-1]:
        return found
    half = batch.rows // 2
    return [half] if batch.rows == _STEP and len(batch.indices) <= half else []


def batches(
    lengths: np.ndarray,
    longest: Sequence[int],
    rows: Callable[[Sequence[int]], int],
    among: Sequence[int] = LENGTHS,
) -> list[PaddedBatch]:
    """Every sequence in exactly one batch.

    Args:
      lengths: int [N, kinds], tokens of each kind of sequence per line.
      longest: largest length allowed of each kind.
      rows: rows of a batch with these lengths.
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
        count, indices = rows(shape), np.array(members[shape])
        for start in range(0, len(indices), count):
            found.append(PaddedBatch(indices[start : start + count], count, shape))
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
      patience: see `Compute.few`.
    """

    model: Compute
    longest: int
    tokens: int
    shapes: Sequence[int] = LENGTHS
    patience: int | None = PATIENCE

    def rank(self, inputs: Ids, labels: Ids, advance: Advance | None = None) -> np.ndarray:
        """Log-likelihood of every label for every input; each input is encoded once.

        Args:
          inputs: N sequences with EOS, none longer than `longest`.
          labels: K sequences with EOS.
          advance: told the number of inputs done.

        Returns:
          float32 [N, K].
        """
        found = np.zeros((len(inputs), len(labels)), np.float32)
        given = _Given("rank", [inputs], [self.longest], LabelTree.of(labels).arrays, {})
        for indices, values in self._results(given, advance):
            found[indices] = values
        return found

    def score(self, inputs: Ids, targets: Ids, longest_target: int) -> np.ndarray:
        """Log-likelihood of `targets[i]` (with EOS) for `inputs[i]` -> float32 [N]."""
        found = np.zeros(len(inputs), np.float32)
        given = _Given("score", [inputs, targets], [self.longest, longest_target], (), {})
        for indices, values in self._results(given):
            found[indices] = values
        return found

    def embed(self, inputs: Ids) -> list[np.ndarray]:
        """The vector of each input, see `kcmoe.inference.embed` -> N of float32 [D]."""
        found: list[Any] = [None] * len(inputs)
        for indices, values in self._results(_Given("embed", [inputs], [self.longest], (), {})):
            for index, vector in zip(indices, values, strict=True):
                found[index] = vector
        return found

    def search(
        self,
        inputs: Ids,
        max_tokens: int,
        *,
        beam_size: int = 1,
        alpha: float = 0.6,
        end: int = _EOS,
        advance: Advance | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """All beams of a search for the best targets, the best last.

        Args:
          inputs: N sequences with EOS, none longer than `longest`.
          max_tokens: most tokens of a target.
          beam_size: number of beams; 1 is greedy.
          alpha: strength of the brevity penalty.
          end: a token that ends a target as EOS does.
          advance: told the number of inputs done.

        Returns:
          int32 [N, beams, max_tokens], 0 after the end; float32 [N, beams], their scores.
        """
        rest = np.asarray(alpha, np.float32), np.array([_EOS, end], np.int32)
        settings = {"max_decode_len": max_tokens, "beam_size": beam_size}
        given = _Given("search", [inputs], [self.longest], rest, settings)
        ids = np.zeros((len(inputs), beam_size, max_tokens), np.int32)
        scores = np.zeros((len(inputs), beam_size), np.float32)
        rows = functools.partial(search_rows, tokens=self.tokens, beams=beam_size)
        for indices, values in self._results(given, advance, rows):
            ids[indices], scores[indices] = values
        return ids, scores

    def generate(
        self,
        inputs: Ids,
        max_tokens: int,
        *,
        beam_size: int = 1,
        alpha: float = 0.6,
        advance: Advance | None = None,
    ) -> np.ndarray:
        """The best target of each input by `search` -> int32 [N, max_tokens], 0 after EOS."""
        found, _ = self.search(
            inputs, max_tokens, beam_size=beam_size, alpha=alpha, advance=advance
        )
        return found[:, -1]

    def _results(
        self,
        given: _Given,
        advance: Advance | None = None,
        rows: Callable[[Sequence[int]], int] | None = None,
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Places in the caller's order, and what was computed for them; programs are made ready together."""
        lengths = np.stack([[len(ids) for ids in one] for one in given.sequences], axis=1)
        rows = rows or functools.partial(rows_of, tokens=self.tokens)
        plan = batches(lengths, given.longest, rows, self.shapes)
        plan = [part for batch in plan for part in self._few(given, batch)]
        one_of_each = {(batch.lengths, batch.rows): batch for batch in plan}.values()
        self.model.prepare(given.call(batch) for batch in one_of_each)

        def compute(batch: PaddedBatch) -> Any:
            return self.model(given.name, *given.arrays(batch), **given.settings)

        for batch, values in run(plan, compute, advance):
            count = len(batch.indices)
            if isinstance(values, tuple):
                yield batch.indices, tuple(value[:count] for value in values)
            else:
                yield batch.indices, values[:count]

    def _few(self, given: _Given, batch: PaddedBatch) -> list[PaddedBatch]:
        """`batch` as smaller ones, where it has few lines and that gives the same bits sooner."""
        candidates = few_rows(batch)
        if not candidates:
            return [batch]
        rows = self.model.few(given.call(batch), given.rest, candidates, self.patience)
        if not rows or len(batch.indices) > _FEW_BATCHES * rows:
            return [batch]
        return [
            PaddedBatch(batch.indices[start : start + rows], rows, batch.lengths)
            for start in range(0, len(batch.indices), rows)
        ]


@dataclasses.dataclass(frozen=True)
class _Given:
    """What one function is to compute: some kinds of sequences, and arrays that all rows share."""

    name: str
    sequences: Sequence[Ids]
    longest: Sequence[int]
    rest: tuple[np.ndarray, ...]
    settings: Mapping[str, Any]

    def call(self, batch: PaddedBatch) -> Call:
        """What computes such a batch, told from its shape alone."""
        padded = tuple(((batch.rows, length), "int32") for length in batch.lengths)
        rest = Call.of(self.name, self.rest, self.settings)
        return rest._replace(shapes=padded + rest.shapes)

    def arrays(self, batch: PaddedBatch) -> tuple[np.ndarray, ...]:
        padded = (batch.pad(ids, kind) for kind, ids in enumerate(self.sequences))
        return *padded, *self.rest
