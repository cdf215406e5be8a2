# SPDX-License-Identifier: Apache-2.0
"""A second optimizer takes one class and one line of the registry: nothing else in training knows slots.

The one here is gradient descent with momentum, which keeps one array for matrices and none for scales.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from jax import Array

from kcmoe import checkpoint
from kcmoe.config.fields import macro
from kcmoe.errors import UserError
from kcmoe.tools.plan import memory
from kcmoe.training import sharding
from kcmoe.training import state as states
from kcmoe.training.loop import train
from kcmoe.training.optimizers import registry
from kcmoe.training.optimizers.base import Optimizer, Params, Slot, States

EXPERT = "encoder/layers_0/mlp/expert/wi_0/kernel"
SCALE = "encoder/encoder_norm/scale"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum(Optimizer):
    """m = decay m + g; p = p - rate m. Scales move along the gradient alone."""

    decay: float = macro("MOMENTUM_DECAY", help="share of the old momentum", default=0.9)

    def slots(self, path: str, shape: tuple[int, ...]) -> dict[str, Slot]:
        if path.endswith("/scale"):
            return {}
        axes = ("expert", None, None) if "/expert/" in path else (None,) * len(shape)
        return {"momentum": Slot(shape, axes)}

    def update(
        self,
        params: Mapping[str, Array],
        states: Mapping[str, Mapping[str, Array]],
        grads: Mapping[str, Array],
        step: Array,
        learning_rate: Array,
    ) -> tuple[Params, States]:
        new_params, new_states = {}, {}
        for path, param in params.items():
            slots = {name: self.decay * m + grads[path] for name, m in states[path].items()}
            new_states[path] = slots
            new_params[path] = param - learning_rate * slots.get("momentum", grads[path])
        return new_params, new_states


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line."""
    monkeypatch.setitem(registry.OPTIMIZERS, "momentum", Momentum)


def settings(toy: ModuleType, folder: Path, **changes: object):
    return toy.settings(folder, OPTIMIZER="momentum", LEARNING_RATE=0.01, **changes)


def test_a_run_stops_and_goes_on_bit_for_bit(toy: ModuleType, tmp_path: Path) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    straight = train(settings(toy, whole), toy.inputs(), say=lambda line: None)
    train(settings(toy, halved, TRAIN_STEPS=4), toy.inputs(), say=lambda line: None)
    resumed = train(settings(toy, halved), toy.inputs(), say=lambda line: None)
    flat = states.to_flat(resumed.state)
    for path, leaf in states.to_flat(straight.state).items():
        np.testing.assert_array_equal(flat[path], leaf, err_msg=path)
    assert f"state/param_states/{EXPERT}/momentum" in flat
    assert not any("v_row" in path or SCALE in path for path in flat if "param_states" in path)
    losses = [record["cross_ent_loss"] for record in toy.records(whole, "eval")]
    assert losses[-1] < losses[0]


def test_its_settings_are_known_and_checked(toy: ModuleType, tmp_path: Path) -> None:
    assert settings(toy, tmp_path, MOMENTUM_DECAY=0.5).optimizer == Momentum(decay=0.5)
    with pytest.raises(UserError, match=r"OPTIMIZER = 'momentun', .*Did you mean momentum"):
        toy.settings(tmp_path, OPTIMIZER="momentun")
    with pytest.raises(UserError, match="MOMENTUM_DECAY"):
        settings(toy, tmp_path, MOMENTUM_DECAY="much")


@pytest.mark.devices(4)
def test_slots_are_divided_and_planned_for(toy: ModuleType, tmp_path: Path) -> None:
    run = settings(toy, tmp_path)
    mesh = sharding.make_mesh(run.model, 4, jax.devices()[:4])
    shapes = states.state_shapes(run.model, run.optimizer)
    flat = states.to_flat(shapes)
    placed = states.to_flat(sharding.state_shardings(mesh, shapes, run.optimizer))
    divided = f"state/param_states/{EXPERT}/momentum"
    assert placed[divided].shard_shape(flat[divided].shape)[0] == flat[divided].shape[0] // 4
    held = sum(
        4 * int(np.prod(placed[path].shard_shape(leaf.shape)))
        for path, leaf in flat.items()
        if "param_states" in path
    )
    layout = memory.mesh_shape(run.model, 4, 4, 1)
    assert memory.state_bytes(run.model, run.optimizer, layout)[1] == held


def test_another_optimizers_state_is_left_behind(toy: ModuleType, tmp_path: Path) -> None:
    """Weights and step are taken, and the run says that the optimizer starts afresh."""
    before, after = tmp_path / "adafactor", tmp_path / "momentum"
    train(toy.settings(before), toy.inputs(), say=lambda line: None)
    start = str(before / "checkpoint_6")
    lines: list[str] = []
    train(
        settings(toy, after, TRAIN_STEPS=7, INITIAL_CHECKPOINT_PATH=start),
        toy.inputs(),
        say=lines.append,
    )
    assert f"start       step 6, weights of {start}, fresh optimizer state" in lines
    with pytest.raises(UserError, match="begun with other settings: OPTIMIZER 'adafactor' -> "):
        train(settings(toy, before, TRAIN_STEPS=8), toy.inputs(), say=lambda line: None)
    extra = json.loads((after / "checkpoint_7" / "training.json").read_text())
    assert extra["step"] == 7
    assert checkpoint.open_checkpoint(after / "checkpoint_7").step == 7
