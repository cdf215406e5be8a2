# SPDX-License-Identifier: Apache-2.0
"""Data and expert parallelism on virtual CPU devices."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kcmoe.errors import UserError
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


@pytest.mark.parametrize("dispatch", ["gather", "exchange"])
def test_devices_do_not_change_the_losses(toy: ModuleType, tmp_path: Path, dispatch: str) -> None:
    """Sums over devices round differently, nothing else differs: 2e-7 was seen, float32 has 1.2e-7."""
    settings = toy.settings(tmp_path, NUM_EXPERT_PARTITIONS=4, DISPATCH=dispatch)
    shapes = states.state_shapes(settings.model, settings.optimizer)
    init = jax.jit(lambda: states.init_state(settings.model, 0, settings.optimizer))()
    start = jax.device_get(init)
    losses: dict[tuple[int, int], list[float]] = {}
    for devices, model in ((1, 1), (2, 1), (4, 1), (4, 2)):
        mesh = sharding.make_mesh(settings.model, 4, jax.devices()[:devices], model)
        assert mesh.shape["expert"] == devices // model
        shardings = sharding.state_shardings(mesh, shapes, settings.optimizer, model)
        state = jax.device_put(start, shardings)
        experts, width, _ = state.params[EXPERT].addressable_shards[0].data.shape
        assert (experts, width) == (4 * model // devices, 16)
        dense = state.params["encoder/layers_0/attention/query/kernel"].addressable_shards[0].data
        assert dense.size == 16 * 16 // model**2
        update = jax.jit(
            make_update(of_run(settings, mesh=mesh)),
            out_shardings=(shardings, sharding.named(mesh)),
        )
        losses[devices, model] = []
        for step in range(5):
            rows = sharding.put_batch(mesh, toy.ToyBatches(8).at(step), 2)
            state, metrics = update(state, rows)
            losses[devices, model].append(float(metrics["loss"]))
        assert state.params[EXPERT].sharding.spec == shardings.params[EXPERT].spec
    one, *others = losses.values()
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-6)
    assert one[4] < one[0]


@pytest.mark.parametrize(
    ("experts", "dims"),
    [(1, 1), (2, 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in [(2, 1), (1, 2)])],
)
def test_matrices_and_widths_are_divided(
    toy: ModuleType, tmp_path: Path, experts: int, dims: int
) -> None:
    settings = toy.settings(tmp_path)
    shapes = states.state_shapes(settings.model, settings.optimizer)
    mesh = sharding.make_mesh(settings.model, experts, jax.devices()[:4], 2)
    placed = sharding.state_shardings(mesh, shapes, settings.optimizer, dims)
    specs = {path: tuple(one.spec) for path, one in placed.params.items()}
    width = ("data", "expert") if dims == 2 else None
    assert specs["encoder/layers_0/attention/query/kernel"] == (width, "model")
    assert specs["token_embedder/embedding"] == ("model", width)
    assert specs[EXPERT] == ("expert", "data" if dims == 2 else None, "model")
    for leaf, at in zip(*map(jax.tree.leaves, (shapes, placed)), strict=True):
        at.shard_shape(leaf.shape)  # divides, or this raises


def test_what_does_not_divide_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    settings = toy.settings(tmp_path)
    with pytest.raises(UserError, match="NUM_MODEL_PARTITIONS = 4 does not divide NUM_HEADS = 2"):
        sharding.make_mesh(settings.model, 1, jax.devices()[:4], 4)
    mesh = sharding.make_mesh(settings.model, 1, jax.devices()[:3])
    with pytest.raises(
        UserError, match=r"8 is not a multiple of 3, which is 3 devices \(of 3 hosts"
    ):
        sharding.check(mesh, settings, 3)
    wide = toy.settings(tmp_path, BATCH_SIZE=9, PARAMETER_PARTITIONING_DIMS=2)
    with pytest.raises(UserError, match="divides EMBED_DIM = 16 over 3 devices"):
        sharding.check(mesh, wide, 1)
    assert sharding.row_devices(sharding.make_mesh(settings.model, 1, jax.devices()[:4], 2)) == 2
