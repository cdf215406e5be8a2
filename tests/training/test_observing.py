# SPDX-License-Identifier: Apache-2.0
"""Steps are recorded once they are done, signs of trouble are noticed, and a healthy run gets no warning."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe.training import observing


def test_effective_experts_by_hand() -> None:
    assert observing.effective_experts(np.full(8, 1 / 8)) == pytest.approx(8)
    assert observing.effective_experts(np.array([0.5, 0.5, 0, 0])) == pytest.approx(2)
    assert observing.effective_experts(np.array([1.0, 0, 0, 0])) == pytest.approx(1)


def test_dead_experts_are_those_nobody_asked_for() -> None:
    assert observing.dead_experts(np.array([0.5, 0.5, 0.0, 0.0])) == 2


def test_collapse_is_told_once_per_layer() -> None:
    alarm = observing.CollapseAlarm(num_experts=8, num_selected_experts=2)
    even, collapsed = np.full(8, 1 / 8), np.array([0.5, 0.49, 0.01, 0, 0, 0, 0, 0])
    told = []
    for step in range(1, 3 * observing.WINDOW_STEPS):
        told += alarm.observe(step, {"encoder/layers_3/mlp": collapsed, "healthy": even})
    assert len(told) == 1
    assert f"step {observing.WINDOW_STEPS}:" in told[0]
    assert "encoder/layers_3/mlp" in told[0]
    assert "2.1 of 8 experts" in told[0]


def test_a_short_collapse_is_no_alarm() -> None:
    alarm = observing.CollapseAlarm(num_experts=8, num_selected_experts=2)
    even, collapsed = np.full(8, 1 / 8), np.array([1.0, 0, 0, 0, 0, 0, 0, 0])
    for step in range(1, 200):
        load = collapsed if step % 50 < 10 else even
        assert alarm.observe(step, {"layer": load}) == []


@pytest.mark.parametrize("name", ["loss", "grad_norm", "param_norm"])
def test_what_is_not_finite_is_named_with_its_step(name: str) -> None:
    values = {"loss": 1.0, "grad_norm": 1.0, "param_norm": 1.0}
    observing.check_finite(7, values)
    with pytest.raises(observing.NonFiniteError, match=f"{name} is nan at step 7"):
        observing.check_finite(7, {**values, name: float("nan")})


def test_a_choice_of_all_experts_is_no_collapse() -> None:
    alarm = observing.CollapseAlarm(num_experts=4, num_selected_experts=4)
    for step in range(1, 200):
        assert alarm.observe(step, {"layer": np.full(4, 1 / 4)}) == []


class _Computing:
    """A loss that is still being computed."""

    def is_ready(self) -> bool:
        return False


def test_a_step_that_is_done_is_recorded_at_once(toy: ModuleType, tmp_path: Path) -> None:
    """Else the last one before a save would take no time, and the first after it the time of two."""
    observer = observing.Observer(toy.settings(tmp_path), tmp_path, 0)
    observer.add(1, {name: jnp.ones(()) for name in ("loss", "weights", "correct")})
    assert [record["step"] for record in toy.records(tmp_path)] == [1]
    observer.add(2, {"loss": _Computing()})  # type: ignore[dict-item]
    assert [record["step"] for record in toy.records(tmp_path)] == [1]
    observer.close()
