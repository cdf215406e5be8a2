# SPDX-License-Identifier: Apache-2.0
"""Which devices of a TPU slice share a matrix, where T5X has no answer of its own.

T5X knows tiles for v2, v3 and v4 and stops with a traceback on v5e, v5p and v6e, or where its tile is
larger than the slice (t5x@cc342d4:t5x/partitioning.py:default_mesh). Here its own function is asked first.
"""

from __future__ import annotations

import itertools
import math

import jax
from t5x import partitioning

from kcmoe.errors import UserError

Tile = tuple[int, ...]  # x, y, z, core


def for_these_devices(partitions: int) -> Tile | None:
    """The tile of `partitions` devices on the slice JAX sees; None where T5X chooses one that works.

    Raises:
      UserError: if no tile of that many devices fits the slice, or if the devices are several slices.
    """
    devices = sorted(jax.devices(), key=partitioning.get_coords)
    if devices[0].platform != "tpu":
        return None
    slices = {getattr(device, "slice_index", None) or 0 for device in devices}
    if len(slices) > 1:
        raise UserError(
            f"the devices are {len(slices)} slices, and T5X's mesh for mixtures of experts knows one; run "
            "it with `kcmoe train`, or on a larger slice"
        )
    try:
        partitioning.default_mesh(partitions)
        return None
    except (ValueError, AssertionError):
        pass
    bounds = partitioning.bounds_from_last_device(devices[-1])
    local = sorted(jax.local_devices(0), key=partitioning.get_coords)
    tile = choose(partitions, bounds, partitioning.bounds_from_last_device(local[-1]))
    if tile is None:
        fitting = [
            size
            for size in range(1, math.prod(bounds) + 1)
            if choose(size, bounds, partitioning.bounds_from_last_device(local[-1]))
        ]
        raise UserError(
            f"NUM_MODEL_PARTITIONS = {partitions} is no tile of a slice of "
            f"{'x'.join(map(str, bounds))} (x, y, z, cores); what fits: {', '.join(map(str, fitting))}"
        )
    return tile


def choose(partitions: int, bounds: Tile, host: Tile) -> Tile | None:
    """The most compact tile of `partitions` devices, inside one host where that is possible.

    Args:
      partitions: devices in the tile.
      bounds: extent of the slice in x, y, z and cores.
      host: extent of one host's devices. A tile's side must divide it or be a multiple of it, or T5X cannot
        lay its mesh out.

    Returns:
      None if there is no such tile.
    """
    sides = [
        [
            side
            for side in range(1, whole + 1)
            if whole % side == 0 and not (side % own and own % side)
        ]
        for whole, own in zip(bounds, host, strict=True)
    ]
    tiles = [tile for tile in itertools.product(*sides) if math.prod(tile) == partitions]

    def cost(tile: Tile) -> tuple[int, int, Tile]:
        hosts = math.prod(-(-side // own) for side, own in zip(tile, host, strict=True))
        # Cores of one chip first, then the shortest ways; of equal ones the longer x, as T5X's tables.
        return hosts, sum(tile[:3]), tuple(-side for side in tile)

    return min(tiles, key=cost, default=None)
