# SPDX-License-Identifier: Apache-2.0
"""Data and expert parallelism over the devices of one host.

The mesh has T5X's two axes ('data', 'expert'). Rows of a batch are divided over both; experts,
their gradients and their optimizer state over 'expert'; everything else is copied to every device.
XLA inserts the exchange of tokens and the sums of gradients. Nothing here depends on what a number
means, and the losses do not depend on the number of devices beyond the rounding of sums.

Like t5x@cc342d4:t5x/contrib/moe/partitioning.py, without its 'model' axis: what needs it needs a
pod.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kcmoe.config.model import ModelConfig
from kcmoe.training.optimizers.base import Optimizer
from kcmoe.training.state import TrainState
from kcmoe.tree import logical_axes

DATA, EXPERT = "data", "expert"

# Logical axis -> mesh axes. Every logical axis that is not named here is copied.
RULES: Mapping[str, tuple[str, ...]] = {"batch": (DATA, EXPERT), "expert": (EXPERT,)}


def make_mesh(
    config: ModelConfig, num_expert_partitions: int, devices: Sequence[Any] | None = None
) -> Mesh:
    """A (data, expert) mesh over `devices`, all of this host unless given.

    The expert axis is the largest number that divides the devices and the experts and does not pass
    `num_expert_partitions`, as in T5X; a dense model has no expert axis.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    expert = 1
    if config.is_sparse:
        common = math.gcd(len(devices), config.num_experts)
        expert = max(
            n for n in range(1, common + 1) if common % n == 0 and n <= num_expert_partitions
        )
    grid = np.array(devices, dtype=object).reshape(len(devices) // expert, expert)
    return Mesh(grid, (DATA, EXPERT))


def named(mesh: Mesh, *logical_axes: str | None) -> NamedSharding:
    """The sharding of an array with these logical axes, one per dimension."""
    spec = [RULES.get(axis) if axis else None for axis in logical_axes]
    return NamedSharding(mesh, PartitionSpec(*spec))


def state_shardings(mesh: Mesh, shapes: TrainState, optimizer: Optimizer) -> TrainState:
    """A `NamedSharding` for every leaf of the train state with these shapes."""
    params = {path: named(mesh, *logical_axes(path)) for path in shapes.params}
    slots = {path: optimizer.slots(path, leaf.shape) for path, leaf in shapes.params.items()}
    states = {
        path: {name: named(mesh, *slot.axes) for name, slot in of_one.items()}
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


def put_batch(
    mesh: Mesh, batch: Mapping[str, np.ndarray], num_microbatches: int
) -> dict[str, jax.Array]:
    """Sends a batch [B, …] to the devices as microbatches [M, B/M, …], rows divided over all
    devices.

    Microbatch i holds rows i*B/M to (i+1)*B/M, as in T5X: which rows are routed together must not
    depend on the number of devices.
    """
    sharding = named(mesh, None, "batch")
    return {
        name: jax.device_put(value.reshape(num_microbatches, -1, *value.shape[1:]), sharding)
        for name, value in batch.items()
    }
