# SPDX-License-Identifier: Apache-2.0
"""Which examples share a row: first fit over a bounded number of open rows.

Rows are filled once per set and seed, and epochs shuffle the rows. So any row of any epoch is known at
once, but the same examples stay together in all of them. Only lengths are known here, not tokens.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kcmoe.data.features import Lengths

OPEN_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Packing:
    """Row r holds the examples `members[starts[r]:starts[r + 1]]`."""

    members: np.ndarray
    starts: np.ndarray

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return self.starts.size - 1

    def of_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Members of `rows` [R] and, for each, its place in `rows`."""
        sizes = np.diff(self.starts)[rows]
        offsets = np.cumsum(sizes) - sizes
        within = np.arange(sizes.sum()) - np.repeat(offsets, sizes)
        members = self.members[np.repeat(self.starts[rows], sizes) + within]
        return members, np.repeat(np.arange(rows.size), sizes)


def one_each(count: int) -> Packing:
    """Rows of one example each."""
    return Packing(np.arange(count), np.arange(count + 1))


def first_fit(
    inputs: np.ndarray, targets: np.ndarray, lengths: Lengths, order: np.ndarray
) -> Packing:
    """Packs examples into rows.

    Args:
      inputs: int64 [N] tokens of each example's inputs, none above `lengths.inputs`.
      targets: the same for targets.
      lengths: tokens per row.
      order: int64 [N], the order in which examples are placed.

    Returns:
      Rows that hold every example once. An example goes to the oldest of the open rows with room for
      both its sides; where there is none, the fullest open row is closed.
    """
    room = np.full((OPEN_ROWS, 2), -1)
    held: list[list[int]] = [[] for _ in range(OPEN_ROWS)]
    age = np.zeros(OPEN_ROWS, np.int64)
    done: list[list[int]] = []
    sizes = np.stack([inputs, targets], axis=1)
    for opened, example in enumerate(order.tolist()):
        size = sizes[example]
        fits = np.flatnonzero((room >= size).all(axis=1))
        if fits.size:
            row = fits[np.argmin(age[fits])]
        else:
            row = int(np.argmin(room.min(axis=1)))
            if held[row]:
                done.append(held[row])
            held[row], age[row] = [], opened
            room[row] = lengths.inputs, lengths.targets
        held[row].append(example)
        room[row] -= size
    done += [row for row in held if row]
    starts = np.zeros(len(done) + 1, np.int64)
    np.cumsum([len(row) for row in done], out=starts[1:])
    return Packing(np.array([e for row in done for e in row], np.int64), starts)


def efficiency(real_tokens: int, rows: int, length: int) -> float:
    """Share of positions that hold a token, 1.0 for none wasted."""
    return real_tokens / max(rows * length, 1)
