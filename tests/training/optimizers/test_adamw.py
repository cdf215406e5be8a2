# SPDX-License-Identifier: Apache-2.0
"""AdamW against its formula in float64, and what it does where Adafactor would not."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe.errors import UserError
from kcmoe.training.loop import train
from kcmoe.training.optimizers.adamw import AdamW
from kcmoe.training.optimizers.base import States

KERNEL = "encoder/layers_0/mlp/wi_0/kernel"
SCALE = "encoder/encoder_norm/scale"
ADAMW = AdamW(beta1=0.9, beta2=0.98, weight_decay=0.1, clip_norm=1.0)


def zeros(params: dict[str, jnp.ndarray]) -> States:
    return {
        path: {name: jnp.zeros(slot.shape) for name, slot in ADAMW.slots(path, param.shape).items()}
        for path, param in params.items()
    }


def test_three_steps_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    wanted = {KERNEL: rng.normal(size=(4, 6)) * 0.02, SCALE: np.ones(4)}
    params = {path: jnp.asarray(x, jnp.float32) for path, x in wanted.items()}
    states, rate = zeros(params), 0.04
    moments = {path: (np.zeros_like(x), np.zeros_like(x)) for path, x in wanted.items()}
    for taken in (1, 2, 3):
        grads = {path: rng.normal(size=x.shape) for path, x in wanted.items()}
        clip = 1.0 / np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert clip < 1.0  # so that clipping is part of what is compared
        for path, x in wanted.items():
            g = grads[path] * clip
            m, v = moments[path]
            m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
            moments[path] = m, v
            direction = (m / (1 - 0.9**taken)) / np.sqrt(v / (1 - 0.98**taken))
            decay = 0.1 if path == KERNEL else 0.0
            size = np.sqrt((x**2).mean())
            wanted[path] = x - rate * (size * direction + decay * x)
        params, states = ADAMW.update(
            params,
            states,
            {path: jnp.asarray(g, jnp.float32) for path, g in grads.items()},
            jnp.asarray(1_000 + taken),  # a late step: moments are corrected by steps of their own
            jnp.float32(rate),
        )
        for path, x in wanted.items():
            np.testing.assert_allclose(params[path], x, rtol=2e-5, atol=1e-7)


def test_small_gradients_are_not_stretched_to_the_clip() -> None:
    params = {KERNEL: jnp.ones((4, 6), jnp.float32)}
    grads = {KERNEL: jnp.full((4, 6), 1e-3, jnp.float32)}
    _, states = ADAMW.update(params, zeros(params), grads, jnp.asarray(0), jnp.float32(0.1))
    np.testing.assert_allclose(states[KERNEL]["m"], 1e-4, rtol=1e-6)


def test_a_run_of_it_learns_and_resumes(toy: ModuleType, tmp_path: Path) -> None:
    def settings(folder: Path, **changes: object):
        return toy.settings(folder, OPTIMIZER="adamw", LEARNING_RATE=0.01, **changes)

    straight = train(settings(tmp_path / "whole"), toy.inputs(), say=lambda line: None)
    train(settings(tmp_path / "halved", TRAIN_STEPS=4), toy.inputs(), say=lambda line: None)
    resumed = train(settings(tmp_path / "halved"), toy.inputs(), say=lambda line: None)
    for path, param in straight.state.params.items():
        np.testing.assert_array_equal(resumed.state.params[path], param, err_msg=path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ADAMW_BETA1", 1.0),
        ("ADAMW_BETA2", -0.1),
        ("ADAMW_WEIGHT_DECAY", 2.0),
        ("ADAMW_CLIP_NORM", 0.0),
    ],
)
def test_values_out_of_range_are_refused(
    toy: ModuleType, tmp_path: Path, name: str, value: float
) -> None:
    with pytest.raises(UserError, match=name):
        toy.settings(tmp_path, OPTIMIZER="adamw", **{name: value})
