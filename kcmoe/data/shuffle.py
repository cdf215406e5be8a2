# SPDX-License-Identifier: Apache-2.0
"""Random numbers and orders that are functions of their place, not of what was drawn before.

Element i of a shuffled epoch, or the noise of row r, is computed directly, so that the batch of any step
can be made by any worker without making those before it. The permutation is a balanced
Feistel network with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002);
the mixing function is the finalizer of SplitMix64 (Steele et al., 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6


def make_key(*parts: str | int) -> np.uint64:
    """A 64-bit key from names and numbers, the same on every machine and version."""
    text = "\x1f".join(map(str, parts)).encode()
    return np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))


def mix(x: np.ndarray) -> np.ndarray:
    """Scrambles uint64 values one to one."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hashes(key: np.uint64 | np.ndarray, counters: np.uint64 | np.ndarray) -> np.ndarray:
    """Independent uint64 values for (key, counter); shapes broadcast."""
    with np.errstate(over="ignore"):
        return mix(mix(np.asarray(counters, np.uint64) * _GOLDEN + key) + _GOLDEN)


def permute(indices: np.ndarray, size: int, key: np.uint64) -> np.ndarray:
    """Position of each of `indices` under the permutation of `range(size)` that `key` names.

    Args:
      indices: int64 [N], each in [0, size).
      size: number of elements, at least 1.
      key: from `make_key`.

    Returns:
      int64 [N]; over all of `range(size)` every value comes exactly once.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half_bits) - np.uint64(1)
    rounds = hashes(key, np.arange(_ROUNDS))
    values = np.asarray(indices, np.uint64).copy()
    todo = np.arange(values.size)
    while todo.size:
        x = values[todo]
        left, right = x >> half_bits, x & low
        for round_key in rounds:
            left, right = right, left ^ (hashes(round_key, right) & low)
        values[todo] = (left << half_bits) | right
        # The network permutes a power of four; values outside range(size) are permuted again.
        todo = todo[values[todo] >= np.uint64(size)]
    return values.astype(np.int64)


class EpochOrder:
    """Maps global row numbers 0, 1, 2, … to (epoch, element), each epoch in an order of its own."""

    def __init__(self, size: int, seed: int, name: str):
        self.size, self._seed, self._name = size, seed, name

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns int64 epochs [N] and elements [N] of global row numbers [N]."""
        epochs, places = np.divmod(np.asarray(rows, np.int64), self.size)
        elements = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = make_key("order", self._name, self._seed, int(epoch))
            elements[here] = permute(places[here], self.size, key)
        return epochs, elements
