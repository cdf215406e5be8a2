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

from kcmoe.inference.compute import Arrays, Call, fetched


def with_rows(call: Call, rest: Arrays, rows: int) -> Call:
    """`call` with another number of rows, where `rest` are the arrays without a row for each sequence."""
    count = len(call.shapes) - len(rest)
    rowed = tuple(((rows, *shape[1:]), dtype) for shape, dtype in call.shapes[:count])
    return call._replace(shapes=rowed + call.shapes[count:])


def same_bits(
    compute: Callable[..., Any],
    call: Call,
    rest: Arrays,
    candidates: Sequence[int],
    num_embeddings: int,
) -> int:
    """The first number of rows whose program gives the bits of `call` for each row of random sequences.

    Args:
      compute: the function that `call` names.
      call: the program of many rows.
      rest: the last of its arrays, which have no row for each sequence.
      candidates: numbers of rows to try, in this order.
      num_embeddings: rows of the embedding.

    Returns:
      One of the candidates, 0 if none does.
    """
    rng = np.random.default_rng(0)
    shapes = [shape for shape, _ in call.shapes[: len(call.shapes) - len(rest)]]
    rowed = [_random_rows(rng, shape, num_embeddings) for shape in shapes]
    expected = _tuple(fetched(compute(*rowed, *rest)))
    return next((rows for rows in candidates if _same(compute, rowed, rest, rows, expected)), 0)


def _same(
    compute: Callable[..., Any],
    rowed: Arrays,
    rest: Arrays,
    rows: int,
    expected: Arrays,
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
