# SPDX-License-Identifier: Apache-2.0
"""The checksum of an array of which nobody has more than a part.

CRC-32 is linear: but for a constant, that of a whole is the exclusive or of those of its parts, each with
zeros in place of all other parts. And zeros behind a part multiply its CRC by a power of x, modulo the
polynomial, so they need not be read (zlib's `crc32_combine` rests on the same). So each process sums up its
parts, and the sums of all give the checksum that one process would have written.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kcmoe.checkpoint.checksums import raw_bytes
from kcmoe.tree import ShapeDtype

_POLYNOMIAL = 0xEDB88320  # CRC-32, the coefficient of x^0 in the highest bit
_ONE = 0x80000000
_ALL = 0xFFFFFFFF


def part_of(leaf: ShapeDtype, pieces: Iterable[tuple[Sequence[slice], np.ndarray]]) -> int:
    """The part that `pieces` of an array, each a block of it and its values, have in its checksum."""
    total = 0
    for index, values in pieces:
        state, end = 0, 0
        for start, run in _runs(leaf, index, values):
            # zlib begins and ends with the complement, which is not linear.
            state = zlib.crc32(run, _behind_zeros(state, start - end) ^ _ALL) ^ _ALL
            end = start + len(run)
        total ^= _behind_zeros(state, leaf.nbytes - end)
    return total


def joined(leaf: ShapeDtype, parts: Iterable[int]) -> str:
    """The checksum of an array, as `checksums.checksum` gives it, from the parts of all its pieces."""
    state = _behind_zeros(_ALL, leaf.nbytes)
    for part in parts:
        state ^= part
    return f"{state ^ _ALL:08x}"


def _runs(
    leaf: ShapeDtype, index: Sequence[slice], values: np.ndarray
) -> Iterator[tuple[int, memoryview]]:
    """The stretches of a block that are contiguous in the whole array, each with its first byte there."""
    ranges = [part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True)]
    whole = [(0, size) for size in leaf.shape]
    # The last axis that is divided; behind it everything is whole.
    axis = max((n for n in range(len(whole)) if ranges[n] != whole[n]), default=-1)
    if axis < 0:
        yield 0, raw_bytes(values)
        return
    strides = [leaf.dtype.itemsize * int(np.prod(leaf.shape[n + 1 :])) for n in range(axis + 1)]
    first = sum(ranges[n][0] * strides[n] for n in range(axis + 1))
    content = raw_bytes(values)
    length = (ranges[axis][1] - ranges[axis][0]) * strides[axis]
    outer = [range(last - start) for start, last in ranges[:axis]]
    for number, place in enumerate(itertools.product(*outer)):
        at = first + sum(n * stride for n, stride in zip(place, strides, strict=False))
        yield at, content[number * length : (number + 1) * length]


def _behind_zeros(state: int, count: int) -> int:
    """The CRC register `state` after `count` bytes of zero."""
    return _times(state, _power(count)) if count and state else state


@functools.lru_cache(maxsize=4096)
def _power(count: int) -> int:
    """x^(8 count) modulo the polynomial."""
    result, square = _ONE, _ONE >> 8  # x^0, x^8
    while count:
        if count & 1:
            result = _times(result, square)
        square = _times(square, square)
        count >>= 1
    return result


def _times(one: int, other: int) -> int:
    """The product of two polynomials, modulo that of CRC-32."""
    product = 0
    while one:
        if one & _ONE:
            product ^= other
        one = one << 1 & _ALL
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product
