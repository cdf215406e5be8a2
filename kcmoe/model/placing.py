# SPDX-License-Identifier: Apache-2.0
"""Where arrays lie while several devices compute one batch; without a mesh nothing is done.

XLA spreads what nobody places by rules of its own. They lead it to copy whole batches where groups of rows
and experts meet, so those places are named.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# What an axis counts -> axes of the mesh (`training.sharding`). Rows of a batch, and groups of rows, are
# divided over both; experts over 'expert', so that of groups that wait at an expert 'data' is left.
_AXES = {"rows": ("data", "expert"), "experts": ("expert",), "groups": ("data",)}
What = Literal["rows", "experts", "groups"]


def row_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of the mesh that rows of a batch are divided over."""
    return tuple(axis for axis in _AXES["rows"] if axis in mesh.shape)


def rows_over(mesh: Mesh | None) -> int:
    """Devices that rows of a batch are divided over."""
    return math.prod(mesh.shape[axis] for axis in row_axes(mesh)) if mesh else 1


def placed(x: Array, mesh: Mesh | None, *axes: What | None) -> Array:
    """`x` divided along its first axes as named; as it is where there is no mesh or it does not divide."""
    if mesh is None or rows_over(mesh) == 1:
        return x
    spec = [tuple(a for a in _AXES[axis] if a in mesh.shape) if axis else None for axis in axes]
    parts = [math.prod(mesh.shape[name] for name in names or ()) for names in spec]
    if any(size % part for size, part in zip(x.shape, parts, strict=False)):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))
