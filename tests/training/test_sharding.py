# SPDX-License-Identifier: Apache-2.0
"""Data and expert parallelism on virtual CPU devices."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kcmoe.training import sharding
from kcmoe.training import state as states
from kcmoe.training.update import make_update, of_run

EXPERT = "encoder/layers_0/mlp/expert/wi_0/kernel"

pytestmark = pytest.mark.devices(4)


@pytest.mark.parametrize(
    ("devices", "partitions", "expected"),
    [
        (1, 4, (1, 1)),
        (2, 4, (1, 2)),
        (4, 4, (1, 4)),
        (4, 2, (2, 2)),
        (4, 1, (4, 1)),
        (3, 4, (3, 1)),
    ],
)
def test_mesh_as_t5x_would_divide_it(
    toy: ModuleType, tmp_path: Path, devices: int, partitions: int, expected: tuple[int, int]
) -> None:
    model = toy.settings(tmp_path).model  # four experts
    mesh = sharding.make_mesh(model, partitions, jax.devices()[:devices])
    assert (mesh.shape["data"], mesh.shape["expert"]) == expected


def test_a_dense_model_has_no_expert_axis(toy: ModuleType, tmp_path: Path) -> None:
    sparse = {"NUM_ENCODER_SPARSE_LAYERS": 0, "NUM_DECODER_SPARSE_LAYERS": 0}
    model = toy.settings(tmp_path, **sparse).model
    assert sharding.make_mesh(model, 4, jax.devices()[:4]).shape["expert"] == 1


def test_experts_and_their_optimizer_state_are_divided(toy: ModuleType, tmp_path: Path) -> None:
    settings = toy.settings(tmp_path)
    mesh = sharding.make_mesh(settings.model, 4, jax.devices()[:4])
    shaped = states.state_shapes(settings.model, settings.optimizer)
    shapes = states.to_flat(shaped)
    shardings = states.to_flat(sharding.state_shardings(mesh, shaped, settings.optimizer))
    specs = {path: sharding.spec for path, sharding in shardings.items()}
    divided = {path for path, spec in specs.items() if any(spec)}
    expected = {path for path, leaf in shapes.items() if "/expert/" in path and leaf.ndim > 1}
    assert divided == expected
    assert specs[f"target/{EXPERT}"][0] in ("expert", ("expert",))
    assert specs["target/token_embedder/embedding"] in (PartitionSpec(), PartitionSpec(None, None))


def test_microbatches_hold_neighbouring_rows_on_any_number_of_devices(
    toy: ModuleType, tmp_path: Path
) -> None:
    rows = {"x": np.arange(16).reshape(8, 2)}
    model = toy.settings(tmp_path).model
    for devices in (1, 4):
        mesh = sharding.make_mesh(model, 4, jax.devices()[:devices])
        put = sharding.put_batch(mesh, rows, 2)["x"]
        np.testing.assert_array_equal(put, rows["x"].reshape(2, 4, 2))
        assert put.addressable_shards[0].data.shape == (2, 4 // devices, 2)
        shape = sharding.batch_shapes(mesh, rows, 2)["x"]
        assert (shape.shape, shape.sharding) == (put.shape, put.sharding)


def test_devices_do_not_change_the_losses(toy: ModuleType, tmp_path: Path) -> None:
    """Sums over devices round differently, nothing else differs: 2e-7 was seen, float32 has 1.2e-7."""
    settings = toy.settings(tmp_path, NUM_EXPERT_PARTITIONS=4)
    shapes = states.state_shapes(settings.model, settings.optimizer)
    init = jax.jit(lambda: states.init_state(settings.model, 0, settings.optimizer))()
    start = jax.device_get(init)
    losses: dict[int, list[float]] = {}
    for devices in (1, 2, 4):
        mesh = sharding.make_mesh(settings.model, 4, jax.devices()[:devices])
        assert mesh.shape["expert"] == devices
        shardings = sharding.state_shardings(mesh, shapes, settings.optimizer)
        state = jax.device_put(start, shardings)
        assert state.params[EXPERT].addressable_shards[0].data.shape[0] == 4 // devices
        update = jax.jit(
            make_update(of_run(settings)), out_shardings=(shardings, sharding.named(mesh))
        )
        losses[devices] = []
        for step in range(5):
            rows = sharding.put_batch(mesh, toy.ToyBatches(8).at(step), 2)
            state, metrics = update(state, rows)
            losses[devices].append(float(metrics["loss"]))
        assert state.params[EXPERT].sharding.spec == shardings.params[EXPERT].spec
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-5)
    np.testing.assert_allclose(losses[4], losses[1], rtol=1e-5)
    assert losses[1][4] < losses[1][0]
