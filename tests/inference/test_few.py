# SPDX-License-Identifier: Apache-2.0
"""Few lines by small programs: only with the bits of the large ones, and found out once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcmoe.inference import few
from kcmoe.inference.compute import Call
from kcmoe.inference.predict import LanguageModel
from kcmoe.inference.programs import Programs
from kcmoe.inference.runtime import Runtime
from kcmoe.io.kept import Kept

ARRAYS = (np.ones((8, 16), np.int32), np.ones(3, np.float32))
CALL = Call.of("embed", ARRAYS, {})


def sums(wrong_below: int, place: int | None = None) -> Callable[..., np.ndarray]:
    """A function of each row, but off by one bit in programs of few rows, everywhere or in one place."""

    def compute(ids: np.ndarray, factors: np.ndarray) -> np.ndarray:
        found = (ids.sum(1) * factors.sum()).astype(np.float32)
        if len(ids) < wrong_below:
            found[place] = np.nextafter(found[place], np.float32(np.inf))
        return found

    return compute


@pytest.mark.parametrize(
    ("wrong_below", "place", "expected"),
    [(0, None, 2), (3, None, 4), (3, -1, 4), (5, 0, 0)],
)
def test_one_other_bit_in_one_row_is_seen(
    wrong_below: int, place: int | None, expected: int
) -> None:
    assert few.same_bits(sums(wrong_below, place), CALL, ARRAYS[1:], [2, 4], 100) == expected


def test_the_smaller_calls_differ_in_rows_alone() -> None:
    smaller = few.with_rows(CALL, ARRAYS[1:], 2)
    assert smaller == Call.of("embed", (ARRAYS[0][:2], ARRAYS[1]), {})


def made(model: LanguageModel, folder: Path) -> Programs:
    runtime = Runtime.of()
    assert runtime is not None, "jaxlib alone must work where these tests run"
    return Programs(model.loaded.config, model.loaded.weights, runtime, Kept(folder))


def test_asked_often_enough_it_is_found_out_and_kept(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []

    def same_bits(*args: Any) -> int:
        tried.append(args[3])
        return 2

    monkeypatch.setattr(few, "same_bits", same_bits)
    call = Call.of("embed", (np.ones((8, 16), np.int32),), {})

    def ask(programs: Programs, patience: int | None) -> int:
        return programs.few(call, (), [2, 4], patience)

    first = made(model, tmp_path)
    assert [ask(first, patience) for patience in (None, 1, None, 1, None)] == [0, 0, 0, 2, 2]
    assert tried == [[2, 4]]
    other = made(model, tmp_path)  # another process reads it, but not where nobody may wait
    assert [ask(other, patience) for patience in (None, 20)] == [0, 2]
    other.forget()
    assert ask(other, None) == 0
    assert len(tried) == 1


def test_a_line_alone_has_the_bits_it_has_among_many(model: LanguageModel) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 60, 40)
    inputs = [[*rng.integers(2, 32000, n).tolist(), 1] for n in lengths]
    many, alone = (
        dataclasses.replace(model.batched, tokens=1024, patience=patience) for patience in (None, 0)
    )
    labels = [[7, 9, 1], [8, 1]]
    together, vectors = many.rank(inputs, labels), many.embed(inputs)
    for place in (0, 7, 23):
        assert np.array_equal(alone.rank([inputs[place]], labels)[0], together[place])
        assert np.array_equal(alone.embed([inputs[place]])[0], vectors[place])
