# SPDX-License-Identifier: Apache-2.0
"""The update: accumulation as T5X's, expert gradients, freezing, dropout keys.

All but the last test run a two-layer network in place of the model, under the model's paths: what an
update does with gradients does not depend on where they come from.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe.training.optimizers.adafactor import Adafactor
from kcmoe.training.state import TrainState, is_expert, start
from kcmoe.training.update import UpdateParts, accumulate, make_update

FIRST = "encoder/layers_0/mlp/wi_0/kernel"
EXPERT = "encoder/layers_0/mlp/expert/wi_0/kernel"
LAST = "decoder/logits_dense/kernel"
ADAFACTOR = Adafactor(decay_rate=0.8, step_offset=0)


def loss_fn(params: Any, batch: Any, rng: Any) -> Any:
    """Squared error per real target, with noise from `rng` where the batch asks for it."""
    hidden = jnp.tanh(batch["x"] @ params[FIRST])
    hidden += batch["noise"] * jax.random.normal(rng, hidden.shape)
    hidden = jnp.einsum("bf,efg->bg", hidden, params[EXPERT])
    errors = jnp.square(jnp.sum(hidden @ params[LAST], axis=-1) - batch["y"])
    loss = jnp.sum(errors * batch["weight"]) / jnp.sum(batch["weight"])
    return loss, {"loss": loss}


def parameters() -> dict[str, jax.Array]:
    shapes = {FIRST: (6, 8), EXPERT: (4, 8, 5), LAST: (5, 7)}
    rng = np.random.default_rng(0)
    return {path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in shapes.items()}


def batch(microbatches: int, rows: int = 8, noise: float = 0.0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(1)
    flat = {
        "x": rng.normal(size=(rows, 6)),
        "y": rng.normal(size=rows),
        "weight": np.arange(rows) > 0,  # the first microbatch has fewer real targets
        "noise": np.full((rows, 1), noise),
    }
    return {
        name: jnp.asarray(x, jnp.float32).reshape(microbatches, -1, *x.shape[1:])
        for name, x in flat.items()
    }


def state() -> TrainState:
    return start(parameters(), ADAFACTOR, step=5)


def update(**changes: Any) -> Any:
    values = {
        "loss_fn": loss_fn,
        "optimizer": ADAFACTOR,
        "learning_rate": lambda step: jnp.float32(0.1),
        "num_expert_partitions": 1,
        "seed": 0,
    }
    return jax.jit(make_update(UpdateParts(**{**values, **changes})))


@pytest.mark.parametrize("count", [2, 4])
def test_gradients_of_microbatches_are_summed_each_normalised_by_itself(count: int) -> None:
    params, rng = parameters(), jax.random.key(0)
    rows = batch(count)
    grads, metrics = accumulate(loss_fn, params, rows, rng)
    parts = [
        jax.value_and_grad(lambda p, part: loss_fn(p, part, rng)[0])(
            params, {name: x[i] for name, x in rows.items()}
        )
        for i in range(count)
    ]
    for path, grad in grads.items():
        np.testing.assert_allclose(grad, sum(g[path] for _, g in parts), rtol=1e-5, atol=1e-6)
    mean_loss = np.mean([loss for loss, _ in parts])
    np.testing.assert_allclose(metrics["loss"], mean_loss, rtol=1e-6)
    # which is not the gradient of the whole batch, times anything: its parts weigh by their targets
    one, _ = accumulate(loss_fn, params, batch(1), rng)
    assert not np.allclose(grads[LAST], count * one[LAST], rtol=1e-3)


def test_microbatches_save_memory() -> None:
    scratch = {}
    for count in (1, 16):
        rows = batch(count, rows=1 << 16)
        compiled = update().lower(state(), rows).compile()
        scratch[count] = compiled.memory_analysis().temp_size_in_bytes
    assert scratch[16] < scratch[1] / 8


def test_expert_gradients_are_scaled_for_the_optimizer() -> None:
    start, rows = state(), batch(1)
    plain, _ = update()(start, rows)
    scaled, _ = update(num_expert_partitions=4)(start, rows)
    for path, leaves in plain.param_states.items():
        for name, leaf in leaves.items():
            factor = 16 if is_expert(path) else 1  # second moments hold squares
            np.testing.assert_allclose(
                scaled.param_states[path][name], factor * leaf, rtol=1e-5, err_msg=path
            )
        # Adafactor divides the scale out again.
        np.testing.assert_allclose(scaled.params[path], plain.params[path], rtol=1e-5)
    assert [path for path in plain.params if is_expert(path)] == [EXPERT]


def test_frozen_parameters_and_their_optimizer_state_stay() -> None:
    start, rows = state(), batch(1)
    after, metrics = update(frozen=frozenset([FIRST, EXPERT]))(start, rows)
    free, free_metrics = update()(start, rows)
    for path in (FIRST, EXPERT):
        assert jnp.array_equal(after.params[path], start.params[path])
        assert not jnp.array_equal(free.params[path], start.params[path])
        for name, leaf in after.param_states[path].items():
            assert jnp.array_equal(leaf, start.param_states[path][name])
    np.testing.assert_allclose(after.params[LAST], free.params[LAST], rtol=1e-6)
    assert not jnp.array_equal(after.params[LAST], start.params[LAST])
    assert 0 < metrics["grad_norm"] < free_metrics["grad_norm"]
    assert int(after.step) == 6


def test_dropout_depends_on_seed_and_step_only() -> None:
    rows, noiseless = batch(2, noise=0.5), batch(2)

    def loss(step: int, seed: int, rows: Any = rows) -> float:
        start = TrainState(jnp.int32(step), state().params, state().param_states)
        return float(update(seed=seed)(start, rows)[1]["loss"])

    assert loss(3, seed=0) == loss(3, seed=0)
    assert len({loss(3, seed=0), loss(4, seed=0), loss(3, seed=1)}) == 3
    assert loss(3, seed=0, rows=noiseless) == loss(4, seed=1, rows=noiseless)


def test_norms_tell_what_is_not_finite() -> None:
    rows = batch(1)
    broken = {**rows, "y": rows["y"].at[0, 3].set(jnp.inf)}
    assert np.isfinite(update()(state(), rows)[1]["param_norm"])
    metrics = update()(state(), broken)[1]
    assert not np.isfinite(metrics["grad_norm"])
    assert not np.isfinite(metrics["param_norm"])
