# SPDX-License-Identifier: Apache-2.0
"""Whether programs of few rows give the bits of one of many.

XLA chooses its kernels by shape, so a program of two rows may add in another order than one of 24. Where it
does not, a line alone is answered by the small one in a quarter of the time. That depends on the processor
and on the version, so nothing is taken for granted: both compute a batch of random sequences, and only the
same bits in every row let the small one in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kcmoe.inference.compute import Call, fetched

_ROWED = {
    "embed": 1,
    "rank": 1,
    "score": 2,
    "search": 1,
}  # of a function's arrays, those with a row each


def calls(call: Call, candidates: Sequence[int]) -> list[Call]:
    """`call` itself and the same one with each number of rows."""
    rowed, rest = call.shapes[: _ROWED[call.name]], call.shapes[_ROWED[call.name] :]
    found = [call]
    for rows in candidates:
        shapes = tuple(((rows, *shape[1:]), dtype) for shape, dtype in rowed)
        found.append(call._replace(shapes=(*shapes, *rest)))
    return found


def same_bits(
    compute: Callable[..., Any],
    call: Call,
    arrays: Sequence[np.ndarray],
    candidates: Sequence[int],
    num_embeddings: int,
) -> int:
    """The first number of rows whose program gives the bits of `call` for each row of random sequences.

    Args:
      compute: the function that `call` names.
      call: the program of many rows.
      arrays: what it would be called with; those that have a row per sequence are replaced by random ones.
      candidates: numbers of rows to try, in this order.
      num_embeddings: rows of the embedding.

    Returns:
      One of the candidates, 0 if none does.
    """
    rng = np.random.default_rng(0)
    rowed = [
        _random_rows(rng, shape, num_embeddings) for shape, _ in call.shapes[: _ROWED[call.name]]
    ]
    rest = arrays[len(rowed) :]
    expected = _tuple(fetched(compute(*rowed, *rest)))
    return next((rows for rows in candidates if _same(compute, rowed, rest, rows, expected)), 0)


def _same(
    compute: Callable[..., Any],
    rowed: Sequence[np.ndarray],
    rest: Sequence[np.ndarray],
    rows: int,
    expected: Sequence[np.ndarray],
) -> bool:
    for start in range(0, len(rowed[0]), rows):
        places = np.arange(start, start + rows) % len(rowed[0])
        found = _tuple(fetched(compute(*(array[places] for array in rowed), *rest)))
        pairs = zip(found, expected, strict=True)
        if not all(one.tobytes() == other[places].tobytes() for one, other in pairs):
            return False
    return True


def _random_rows(rng: np.random.Generator, shape: Sequence[int], num_embeddings: int) -> np.ndarray:
    """int32 of this shape [rows, length]: random ids, as many in a row as may be, 0 behind them."""
    ids = rng.integers(2, num_embeddings, shape, dtype=np.int32)
    lengths = rng.integers(1, shape[1] + 1, shape[0])
    return np.where(np.arange(shape[1]) < lengths[:, None], ids, 0).astype(np.int32)


def _tuple(result: Any) -> tuple[np.ndarray, ...]:
    return result if isinstance(result, tuple) else (result,)
