# SPDX-License-Identifier: Apache-2.0
"""Data and expert parallelism over the devices of one host, or of all hosts of a run.

The mesh has T5X's axes ('data', 'expert'), and 'model' where NUM_MODEL_PARTITIONS asks for it. Rows of a
batch are divided over the first two; experts, their gradients and their optimizer state over 'expert'; heads,
hidden widths and the vocabulary over 'model'; everything else is copied to every device. Where
PARAMETER_PARTITIONING_DIMS is 2, the width of the model is divided over the devices that rows are divided
over, so that no device holds a matrix whole (FSDP); T5X's own 2 leaves out the expert axis there.
XLA inserts the exchange of tokens and the sums of gradients. Nothing here depends on what a number
means, and the losses do not depend on the number of devices beyond the rounding of sums.

Like t5x@cc342d4:t5x/contrib/moe/partitioning.py and t5x/partitioning.py::standard_logical_axis_rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kcmoe import fits
from kcmoe.config.model import ModelConfig
from kcmoe.training.optimizers.base import Optimizer
from kcmoe.training.settings import Settings
from kcmoe.training.state import TrainState
from kcmoe.tree import logical_axes

DATA, EXPERT, MODEL = "data", "expert", "model"

# Logical axis -> mesh axes. Every logical axis that is not named here is copied.
RULES: Mapping[str, tuple[str, ...]] = {"batch": (DATA, EXPERT), "expert": (EXPERT,)}


_MODEL_AXES = ("vocab", "mlp", "expert_mlp", "joined_kv", "heads")
_WIDTH_AXES = ("embed", "mlp_embed")


def make_mesh(
    config: ModelConfig,
    num_expert_partitions: int,
    devices: Sequence[Any] | None = None,
    num_model_partitions: int = 1,
) -> Mesh:
    """A (data, expert) mesh over `devices`, all of this host unless given; (data, expert, model) where
    more than one shares a matrix.

    The expert axis is the largest number that divides the devices and the experts and does not pass
    `num_expert_partitions`, as in T5X; a dense model has no expert axis.

    Raises:
      UserError: if `num_model_partitions` divides neither the devices nor each matrix.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    model, rows = num_model_partitions, len(devices)
    if model > 1:
        names = ("num_heads", "mlp_dim", "expert_mlp_dim", "num_embeddings")
        rows = fits.check_model_partitions(
            model, len(devices), {name.upper(): getattr(config, name) for name in names}
        )
    expert = 1
    if config.is_sparse:
        common = math.gcd(rows, config.num_experts)
        expert = max(
            n for n in range(1, common + 1) if common % n == 0 and n <= num_expert_partitions
        )
    grid = np.array(devices, dtype=object).reshape(rows // expert, expert, model)
    return Mesh(grid, (DATA, EXPERT, MODEL)) if model > 1 else Mesh(grid[..., 0], (DATA, EXPERT))


def check(mesh: Mesh, settings: Settings, hosts: int = 1) -> None:
    """Raises `UserError` where the rows of a batch or the width of the model do not divide over the mesh."""
    run, devices = settings.run, row_devices(mesh)
    shared = [f"of {hosts} hosts"] if hosts > 1 else []
    if run.model_partitions > 1:
        shared.append(f"{mesh.size} / NUM_MODEL_PARTITIONS = {run.model_partitions}")
    fits.check_batch(run.batch_size, run.microbatches, devices, ", ".join(shared))
    if run.parameter_partitioning_dims == 2:
        fits.check_width(settings.model.embed_dim, devices)


def row_devices(mesh: Mesh) -> int:
    """Devices that rows are divided over."""
    return mesh.size // mesh.shape.get(MODEL, 1)


def named(mesh: Mesh, *logical_axes: str | None) -> NamedSharding:
    """The sharding of an array with these logical axes, one per dimension."""
    spec = [RULES.get(axis) if axis else None for axis in logical_axes]
    return NamedSharding(mesh, PartitionSpec(*spec))


def state_shardings(
    mesh: Mesh, shapes: TrainState, optimizer: Optimizer, partitioning_dims: int = 1
) -> TrainState:
    """A `NamedSharding` for every leaf of the train state with these shapes.

    Args:
      mesh: from `make_mesh`.
      shapes: the state, or anything with its shapes.
      optimizer: which knows the axes of its slots.
      partitioning_dims: PARAMETER_PARTITIONING_DIMS.
    """
    rules = dict(RULES)
    if MODEL in mesh.shape:
        rules |= dict.fromkeys(_MODEL_AXES, (MODEL,))
    if partitioning_dims == 2:
        rules |= dict.fromkeys(_WIDTH_AXES, (DATA, EXPERT))

    def placed(axes: Sequence[str | None]) -> NamedSharding:
        spec = [rules.get(axis, ()) if axis else () for axis in axes]
        if "expert" in axes:  # which has its mesh axis for itself
            spec = [
                one if axis == "expert" else tuple(a for a in one if a != EXPERT)
                for axis, one in zip(axes, spec, strict=True)
            ]
        return NamedSharding(mesh, PartitionSpec(*[one or None for one in spec]))

    params = {path: placed(logical_axes(path)) for path in shapes.params}
    slots = {path: optimizer.slots(path, leaf.shape) for path, leaf in shapes.params.items()}
    states = {
        path: {name: placed(slot.axes) for name, slot in of_one.items()}
        for path, of_one in slots.items()
    }
    step: Any = named(mesh)
    return TrainState(step, params, states)


def batch_shapes(
    mesh: Mesh, batch: Mapping[str, Any], num_microbatches: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of what `put_batch` makes of such a batch."""
    sharding = named(mesh, None, "batch")
    return {
        name: jax.ShapeDtypeStruct(
            (num_microbatches, x.shape[0] // num_microbatches, *x.shape[1:]),
            x.dtype,
            sharding=sharding,
        )
        for name, x in batch.items()
    }


def batch_rows(example: Mapping[str, np.ndarray], batch_size: int) -> dict[str, Any]:
    """Shapes and dtypes of a whole batch, from some of its rows."""
    return {
        name: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype)
        for name, x in example.items()
    }


def put_batch(
    mesh: Mesh, batch: Mapping[str, np.ndarray], num_microbatches: int, batch_size: int = 0
) -> dict[str, jax.Array]:
    """Sends a batch [B, …] to the devices as microbatches [M, B/M, …], rows divided over all
    devices. Where some devices are another process's, `batch` is the `own_rows` of `batch_size`.

    Microbatch i holds rows i*B/M to (i+1)*B/M, as in T5X: which rows are routed together must not
    depend on the number of devices.
    """
    sharding = named(mesh, None, "batch")
    parts = {
        name: value.reshape(num_microbatches, -1, *value.shape[1:]) for name, value in batch.items()
    }
    if not is_shared(mesh):
        return {name: jax.device_put(value, sharding) for name, value in parts.items()}
    return {name: _put_own(sharding, value, batch_size) for name, value in parts.items()}


def is_shared(mesh: Mesh) -> bool:
    """Whether some of the devices are those of another process."""
    return any(device.process_index != jax.process_index() for device in mesh.devices.flat)


def own_rows(mesh: Mesh, batch_size: int, num_microbatches: int) -> np.ndarray:
    """Numbers, ascending, of the rows of a batch that this process's devices compute: int64 [b]."""
    columns = _own_columns(
        named(mesh, None, "batch"), (num_microbatches, batch_size // num_microbatches)
    )
    starts = np.arange(num_microbatches) * (batch_size // num_microbatches)
    return (starts[:, None] + columns).reshape(-1)


def _own_columns(sharding: NamedSharding, shape: tuple[int, ...]) -> np.ndarray:
    slices = [at[1] for at in sharding.addressable_devices_indices_map(shape).values() if at]
    return np.unique(np.concatenate([np.arange(shape[1])[one] for one in slices]))


def _put_own(sharding: NamedSharding, own: np.ndarray, batch_size: int) -> jax.Array:
    """The whole array [M, B/M, …] of which this process has the columns `own` [M, b/M, …]."""
    shape = (own.shape[0], batch_size // own.shape[0], *own.shape[2:])
    columns = _own_columns(sharding, shape)

    def of(at: Any) -> np.ndarray:
        first, last, _ = at[1].indices(shape[1])
        start = int(np.searchsorted(columns, first))
        return own[:, start : start + last - first]

    return jax.make_array_from_callback(shape, sharding, of)


def put_everywhere(mesh: Mesh, features: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Divides rows [B, …], which every process holds, over all devices."""
    sharding = named(mesh, "batch")
    if not is_shared(mesh):
        return {name: jax.device_put(value, sharding) for name, value in features.items()}
    return {
        name: jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
        for name, value in features.items()
    }
