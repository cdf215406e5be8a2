# SPDX-License-Identifier: Apache-2.0
"""EMA_DECAY: the average is the mean of the weights that training passed through, and it is what is used."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe import checkpoint, tree
from kcmoe.checkpoint.reading import open_checkpoint, restore_parameters
from kcmoe.errors import UserError
from kcmoe.training import state as states
from kcmoe.training.loop import train

NAME = "encoder/layers_0/mlp/expert/wi_0/kernel"
OTHER = "decoder/logits_dense/kernel"


def quiet(settings, toy):
    return train(settings, toy.inputs(), say=lambda line: None)


def averages(state) -> dict[str, np.ndarray]:
    return {path: np.asarray(slots["ema"]) for path, slots in state.param_states.items()}


def test_it_is_the_mean_of_the_steps_and_changes_nothing_else(
    toy: ModuleType, tmp_path: Path
) -> None:
    """Every step's weights are in a checkpoint of a run without an average."""
    plain = {"CHECKPOINT_PERIOD": 1, "CHECKPOINTS_TO_KEEP": None, "TRAIN_STEPS": 4}
    quiet(toy.settings(tmp_path / "plain", **plain), toy)
    ended = quiet(toy.settings(tmp_path / "kept", EMA_DECAY=0.999, TRAIN_STEPS=4), toy)
    path = tree.PARAMETERS + NAME
    steps = [
        open_checkpoint(tmp_path / f"plain/checkpoint_{step}").read(path) for step in range(1, 5)
    ]
    np.testing.assert_array_equal(steps[-1], ended.state.params[NAME])
    np.testing.assert_allclose(averages(ended.state)[NAME], np.mean(steps, 0), atol=1e-6)

    recent = quiet(toy.settings(tmp_path / "recent", EMA_DECAY=0.5, TRAIN_STEPS=4), toy)
    shares = [1 / 8, 1 / 8, 1 / 4, 1 / 2]  # the mean of two steps, then halves
    expected = np.tensordot(shares, np.stack(steps), 1)
    np.testing.assert_allclose(averages(recent.state)[NAME], expected, atol=1e-6)


def test_it_is_what_is_judged_and_used(toy: ModuleType, tmp_path: Path) -> None:
    """A frozen parameter has no average and stays itself."""
    frozen = {"EMA_DECAY": 0.9, "FREEZE": [OTHER]}
    ended = quiet(toy.settings(tmp_path / "run", **frozen), toy)
    used = states.for_use(ended.state)
    assert not np.allclose(used[NAME], ended.state.params[NAME])
    np.testing.assert_array_equal(used[NAME], averages(ended.state)[NAME])
    np.testing.assert_array_equal(used[OTHER], ended.state.params[OTHER])

    saved = tmp_path / "run/checkpoint_6"
    expected = tree.as_state(ended.state.params)
    read = tree.parameters(restore_parameters(open_checkpoint(saved), expected))
    checkpoint.convert(saved, tmp_path / "copy", "safetensors", params_only=True)
    copy = open_checkpoint(tmp_path / "copy")
    for path, value in used.items():
        np.testing.assert_array_equal(read[path], value, err_msg=path)
        np.testing.assert_array_equal(copy.read(tree.PARAMETERS + path), value, err_msg=path)


@pytest.mark.slow
def test_it_goes_on_bit_for_bit_and_may_begin_or_end_on_the_way(
    toy: ModuleType, tmp_path: Path
) -> None:
    straight = quiet(toy.settings(tmp_path / "straight", EMA_DECAY=0.9), toy)
    quiet(toy.settings(tmp_path / "halved", EMA_DECAY=0.9, TRAIN_STEPS=4), toy)
    resumed = quiet(toy.settings(tmp_path / "halved", EMA_DECAY=0.9), toy)
    flat = states.to_flat(resumed.state)
    for path, leaf in states.to_flat(straight.state).items():
        np.testing.assert_array_equal(flat[path], leaf, err_msg=path)

    quiet(toy.settings(tmp_path / "begun", TRAIN_STEPS=4), toy)
    begun = quiet(toy.settings(tmp_path / "begun", EMA_DECAY=0.9), toy)
    ended = quiet(toy.settings(tmp_path / "halved", TRAIN_STEPS=8), toy)
    whole = quiet(toy.settings(tmp_path / "straight", EMA_DECAY=0.9, TRAIN_STEPS=8), toy)
    np.testing.assert_array_equal(begun.state.params[NAME], straight.state.params[NAME])
    np.testing.assert_array_equal(begun.state.param_states[NAME][tree.AVERAGED], [2.0])
    np.testing.assert_array_equal(ended.state.params[NAME], whole.state.params[NAME])
    assert tree.AVERAGE not in ended.state.param_states[NAME]


@pytest.mark.parametrize("decay", [0.0, 1.0, "much", -0.5])
def test_a_decay_that_means_nothing_is_refused(
    toy: ModuleType, tmp_path: Path, decay: object
) -> None:
    with pytest.raises(UserError, match="EMA_DECAY"):
        toy.settings(tmp_path, EMA_DECAY=decay)


def test_nothing_is_averaged_before_the_first_step(toy: ModuleType, tmp_path: Path) -> None:
    settings = toy.settings(tmp_path, EMA_DECAY=0.9)
    state = states.init_state(settings.model, 0, settings.optimizer)
    np.testing.assert_array_equal(states.for_use(state)[NAME], state.params[NAME])
    assert jnp.all(state.param_states[NAME][tree.AVERAGE] == 0)
