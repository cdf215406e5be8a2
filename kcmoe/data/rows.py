# SPDX-License-Identifier: Apache-2.0
"""Where rows of a batch come from: a corpus, a labelled set, or several of them by weight.

A source is an endless list of rows. Row r is a function of (data, seed, r) alone: nothing is drawn in
sequence, so any batch can be made at once and resuming costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kcmoe.data import packing, span_corruption
from kcmoe.data.features import (
    Features,
    Lengths,
    Ragged,
    model_features,
    one_per_row,
    several_per_row,
)
from kcmoe.data.shuffle import EpochOrder, hashes, make_key, permute
from kcmoe.data.span_corruption import PRETRAINING, Noise
from kcmoe.data.token_cache import TokenCache
from kcmoe.errors import UserError
from kcmoe.vocabulary import Vocabulary


class Rows(Protocol):
    """An endless list of rows.

    Attributes:
      rows_per_epoch: after so many rows every one has been seen once.
      fingerprint: changes when the same row number would give another row.
    """

    rows_per_epoch: int
    fingerprint: str

    def take(self, rows: np.ndarray) -> Features:
        """Features of the rows with these numbers, int64 [B]."""
        ...

    def changed_sources(self) -> list[str]:
        """Files that are no longer what was read."""
        ...


class CorpusRows:
    """Segments of a corpus under span corruption.

    Documents follow each other without a mark, as in T5, in the order of the files; the ring of tokens is
    cut into segments, from another token in each epoch, and the segments are shuffled. Order documents
    beforehand with `kcmoe data prepare`.
    """

    def __init__(
        self,
        name: str,
        cache: TokenCache,
        vocabulary: Vocabulary,
        lengths: Lengths,
        seed: int,
        *,
        pack: bool = True,
        shuffle: bool = True,
        noise: Noise = PRETRAINING,
    ):
        """Raises `UserError` where lengths do not fit or the corpus is shorter than one segment."""
        self.counts = span_corruption.check_lengths(
            lengths.inputs, lengths.targets, vocabulary.num_sentinels, noise
        )
        self._cache, self._lengths, self._pack = cache, lengths, pack
        self._noise, self._shuffle = noise, shuffle
        self._first_sentinel, self._eos = vocabulary.sentinel_id(0), vocabulary.eos_id
        self.rows_per_epoch = cache.num_tokens // self.counts.tokens
        if not self.rows_per_epoch:
            raise UserError(
                f"task {name}: {cache.num_tokens} tokens of text are less than one row of "
                f"{self.counts.tokens}; give more text or shorter TASK_FEATURE_LENGTHS"
            )
        self._name, self._seed = name, seed
        self._order = EpochOrder(self.rows_per_epoch, seed, name)
        self._noise_key = make_key("noise", name, seed)
        self.fingerprint = _digest(name, cache.digest, seed, lengths, noise, pack)

    def take(self, rows: np.ndarray) -> Features:
        """See `Rows.take`."""
        mask = span_corruption.noise_masks(
            hashes(self._noise_key, rows), self.counts.tokens, self._noise
        )
        inputs, targets = span_corruption.corrupt(
            self.segments(rows), mask, self._first_sentinel, self._eos
        )
        sides = (
            one_per_row(inputs, self._lengths.inputs),
            one_per_row(targets, self._lengths.targets),
        )
        return model_features(*sides, self._pack)

    def segments(self, rows: np.ndarray) -> np.ndarray:
        """The tokens of these rows before corruption, int32 [B, tokens]."""
        return self._cache.read(self.segment_starts(rows), self.counts.tokens)

    def segment_starts(self, rows: np.ndarray) -> np.ndarray:
        """The first token of each row's segment, int64 [B]."""
        if not self._shuffle:
            return np.asarray(rows, np.int64) * self.counts.tokens % self._cache.num_tokens
        epochs, segments = self._order(rows)
        # Each epoch cuts at other places, so that the same words do not always share a row.
        distinct, where = np.unique(epochs, return_inverse=True)
        keys = [make_key("phase", self._name, self._seed, int(epoch)) for epoch in distinct]
        phases = np.array([int(key) % self._cache.num_tokens for key in keys], np.int64)
        return (phases[where] + segments * self.counts.tokens) % self._cache.num_tokens

    def changed_sources(self) -> list[str]:
        """See `Rows.changed_sources`."""
        return self._cache.changed_sources()


class LabelledRows:
    """Examples of a labelled set, one or several to a row."""

    def __init__(
        self,
        name: str,
        inputs: Ragged,
        targets: Ragged,
        lengths: Lengths,
        seed: int,
        *,
        pack: bool = False,
        shuffle: bool = True,
    ):
        """Takes sequences that end in EOS and fit `lengths`; see `pipeline.tokenize_examples`."""
        self.inputs, self.targets = inputs, targets
        self._lengths, self._pack, self._shuffle = lengths, pack, shuffle
        count = inputs.lengths.size
        if pack:
            order = permute(np.arange(count), count, make_key("pack", name, seed))
            self.packing = packing.first_fit(inputs.lengths, targets.lengths, lengths, order)
        else:
            self.packing = packing.one_each(count)
        self.rows_per_epoch = self.packing.num_rows
        self._order = EpochOrder(self.rows_per_epoch, seed, name)
        content = hashlib.sha256(inputs.tokens.tobytes() + targets.tokens.tobytes()).hexdigest()
        self.fingerprint = _digest(name, content, seed, lengths, pack)

    def take(self, rows: np.ndarray) -> Features:
        """See `Rows.take`."""
        elements = self._order(rows)[1] if self._shuffle else np.asarray(rows) % self.rows_per_epoch
        return self.place(*self.packing.of_rows(elements), num_rows=len(rows))

    def place(self, members: np.ndarray, rows: np.ndarray, num_rows: int) -> Features:
        """Features of `num_rows` rows in which example `members[k]` stands in row `rows[k]`."""
        where, lengths = (members, rows, num_rows), self._lengths
        inputs = several_per_row(self.inputs, *where, lengths.inputs)
        targets = several_per_row(self.targets, *where, lengths.targets)
        return model_features(inputs, targets, self._pack)

    def changed_sources(self) -> list[str]:
        """Nothing: the examples are in memory."""
        return []


class MixedRows:
    """Several sources by weight.

    Every block of `BLOCK` rows holds each source in exact proportion, in an order of its own; so the
    place of row r within its source is known without counting through the rows before it.
    """

    BLOCK = 1000

    def __init__(self, name: str, parts: Sequence[tuple[Rows, float]], seed: int):
        """Raises `UserError` if a weight is too small to get a place in a block."""
        weights = np.array([weight for _, weight in parts], np.float64)
        shares = weights / weights.sum() * self.BLOCK
        counts = np.floor(shares).astype(np.int64)
        for part in np.argsort(counts - shares, kind="stable")[: self.BLOCK - counts.sum()]:
            counts[part] += 1
        if (counts == 0).any():
            raise UserError(
                f"mixture {name}: a weight below 1/{self.BLOCK} of the sum is too small"
            )
        self._parts, self._counts = [rows for rows, _ in parts], counts
        self._owner_in_order = np.repeat(np.arange(len(parts)), counts)
        self._name, self._seed = name, seed
        epochs = [p.rows_per_epoch / c for p, c in zip(self._parts, counts, strict=True)]
        self.rows_per_epoch = int(np.ceil(max(epochs) * self.BLOCK))
        self.fingerprint = _digest(name, *(p.fingerprint for p in self._parts), counts.tolist())

    def owners(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each row number [B]: which source it comes from, and its number there."""
        blocks, places = np.divmod(np.asarray(rows, np.int64), self.BLOCK)
        owner, number = np.empty_like(places), np.empty_like(places)
        for block in np.unique(blocks):
            here = blocks == block
            key = make_key("mixture", self._name, self._seed, int(block))
            order = self._owner_in_order[permute(np.arange(self.BLOCK), self.BLOCK, key)]
            rank = np.empty(self.BLOCK, np.int64)
            for part, count in enumerate(self._counts):
                rank[order == part] = np.arange(count) + block * count
            owner[here], number[here] = order[places[here]], rank[places[here]]
        return owner, number

    def take(self, rows: np.ndarray) -> Features:
        """See `Rows.take`."""
        owner, number = self.owners(rows)
        features: Features = {}
        for part in np.unique(owner):
            here = owner == part
            for name, values in self._parts[part].take(number[here]).items():
                if name not in features:
                    features[name] = np.zeros((len(rows), values.shape[1]), np.int32)
                features[name][here] = values
        return features

    def changed_sources(self) -> list[str]:
        """See `Rows.changed_sources`."""
        return [line for part in self._parts for line in part.changed_sources()]


def _digest(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
