# SPDX-License-Identifier: Apache-2.0
"""Orders and random numbers that are functions of their place."""

from __future__ import annotations

import numpy as np
import pytest

from kcmoe.data.shuffle import EpochOrder, hashes, make_key, permute


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 1000, 65_537])
def test_every_element_comes_once(size):
    assert np.sort(permute(np.arange(size), size, make_key(size))).tolist() == list(range(size))


def test_a_place_is_found_without_the_others():
    whole = permute(np.arange(1000), 1000, make_key("a"))
    assert permute(np.array([999, 3]), 1000, make_key("a")).tolist() == whole[[999, 3]].tolist()


def test_orders_look_random():
    order = permute(np.arange(10_000), 10_000, make_key("b"))
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05


def test_epochs_and_seeds_differ_and_epochs_are_complete():
    order = EpochOrder(100, seed=1, name="x")
    epochs, elements = order(np.arange(300))
    assert epochs.tolist() == [0] * 100 + [1] * 100 + [2] * 100
    assert all(sorted(elements[i : i + 100].tolist()) == list(range(100)) for i in (0, 100, 200))
    assert not (elements[:100] == elements[100:200]).all()
    assert not (EpochOrder(100, seed=2, name="x")(np.arange(100))[1] == elements[:100]).all()


def test_numbers_are_the_same_on_every_machine():
    assert int(make_key("order", 7)) == 12448061683619367535
    assert hashes(np.uint64(1), np.arange(2)).tolist() == [
        13830413928045401970,
        6791897765849424158,
    ]
