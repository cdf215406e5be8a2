# SPDX-License-Identifier: Apache-2.0
"""A mesh on every kind of TPU, built by T5X's own function from devices that only say where they are."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from kcmoe.errors import UserError

pytestmark = [pytest.mark.t5x, pytest.mark.filterwarnings("default")]


@dataclasses.dataclass(frozen=True)
class Device:
    """What T5X asks of a TPU core."""

    id: int
    coords: tuple[int, int, int]
    core_on_chip: int
    device_kind: str
    process_index: int
    slice_index: int = 0
    platform: str = "tpu"


# kind, extent of the slice, extent of a host; as Google describes v3-8, v4-32, v5litepod-8, -16 and -256,
# v5p-8 and -32, v6e-8 and -16.
SLICES = {
    "v3-8": ("TPU v3", (2, 2, 1, 2), (2, 2, 1, 2)),
    "v3-32": ("TPU v3", (4, 4, 1, 2), (2, 2, 1, 2)),
    "v4-32": ("TPU v4", (2, 2, 4, 1), (2, 2, 1, 1)),
    "v5e-1": ("TPU v5 lite", (1, 1, 1, 1), (1, 1, 1, 1)),
    "v5e-8": ("TPU v5 lite", (2, 4, 1, 1), (2, 4, 1, 1)),
    "v5e-16": ("TPU v5 lite", (4, 4, 1, 1), (2, 2, 1, 1)),
    "v5e-256": ("TPU v5 lite", (16, 16, 1, 1), (2, 2, 1, 1)),
    "v5p-8": ("TPU v5", (2, 2, 1, 1), (2, 2, 1, 1)),
    "v5p-32": ("TPU v5", (2, 2, 4, 1), (2, 2, 1, 1)),
    "v6e-8": ("TPU v6 lite", (2, 4, 1, 1), (2, 4, 1, 1)),
    "v6e-16": ("TPU v6 lite", (4, 4, 1, 1), (2, 2, 1, 1)),
}


def slice_of(name: str) -> list[Device]:
    kind, bounds, host = SLICES[name]
    places = list(itertools.product(*map(range, bounds)))
    hosts = sorted({tuple(x // own for x, own in zip(at, host, strict=True)) for at in places})
    owner = [hosts.index(tuple(x // own for x, own in zip(at, host, strict=True))) for at in places]
    return [Device(i, at[:3], at[3], kind, owner[i]) for i, at in enumerate(places)]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes JAX see these devices, and gives them back."""
    import jax

    def see(devices: list[Device]) -> list[Device]:
        monkeypatch.setattr(jax, "devices", lambda *backend: devices)
        local = [device for device in devices if device.process_index == 0]
        monkeypatch.setattr(jax, "local_devices", lambda *where: local)
        return devices

    return see


def blocks(mesh: Any) -> bool:
    """Whether each host's devices are one block of the mesh, as T5X needs them to deal rows."""
    owner = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return all(
        (owner[np.ix_(*map(np.unique, np.nonzero(owner == host)))] == host).all()
        for host in np.unique(owner)
    )


@pytest.mark.parametrize("partitions", [1, 2, 4, 8])
@pytest.mark.parametrize("name", SLICES)
def test_t5x_builds_a_mesh_on_every_kind(name: str, partitions: int, on: Any) -> None:
    from t5x.contrib.moe import partitioning

    from kcmoe.t5x import submesh

    devices = on(slice_of(name))
    if len(devices) % partitions:
        pytest.skip(f"{partitions} does not divide {len(devices)}")
    tile = submesh.for_these_devices(partitions)
    mesh = partitioning.default_moe_mesh(8, None if tile else partitions, tile)
    assert mesh.size == len(set(mesh.devices.flat)) == len(devices)
    assert mesh.shape["model"] == partitions
    assert blocks(mesh)


@pytest.mark.parametrize("name", ["v5e-8", "v5p-32", "v6e-16"])
def test_t5x_alone_has_none_there(name: str, on: Any) -> None:
    """When this fails, T5X has learnt of the kind and the choice made here may go."""
    from t5x import partitioning

    on(slice_of(name))
    with pytest.raises(ValueError, match="No default mesh"):
        partitioning.default_mesh(1)


def test_where_t5x_has_a_tile_it_is_left_alone(on: Any) -> None:
    from kcmoe.t5x import submesh

    for name, partitions in (("v3-8", 1), ("v3-8", 8), ("v4-32", 2), ("v4-32", 4)):
        on(slice_of(name))
        assert submesh.for_these_devices(partitions) is None
    assert submesh.for_these_devices(8) == (2, 2, 2, 1), "T5X's 4x2x1 is wider than the slice"


@pytest.mark.parametrize(
    ("partitions", "bounds", "host", "tile"),
    [
        (1, (16, 16, 1, 1), (2, 2, 1, 1), (1, 1, 1, 1)),
        (4, (16, 16, 1, 1), (2, 2, 1, 1), (2, 2, 1, 1)),  # a host, rather than a row over two
        (4, (2, 4, 1, 1), (2, 4, 1, 1), (2, 2, 1, 1)),
        (8, (4, 4, 1, 1), (2, 2, 1, 1), (4, 2, 1, 1)),
        (2, (2, 2, 1, 2), (2, 2, 1, 2), (1, 1, 1, 2)),  # the cores of a chip
        (3, (2, 4, 1, 1), (2, 4, 1, 1), None),
    ],
)
def test_the_tile_is_compact_and_within_a_host(
    partitions: int, bounds: Any, host: Any, tile: Any
) -> None:
    from kcmoe.t5x import submesh

    assert submesh.choose(partitions, bounds, host) == tile


def test_what_does_not_fit_is_said(on: Any) -> None:
    from kcmoe.t5x import submesh

    on([dataclasses.replace(one, device_kind="TPU v9") for one in slice_of("v4-32")])
    with pytest.raises(UserError, match=r"slice of 2x2x4x1 .*; what fits: 1, 2, 4, 8, 16"):
        submesh.for_these_devices(3)
    devices = slice_of("v5e-8")
    on([*devices, *(dataclasses.replace(one, slice_index=1) for one in devices)])
    with pytest.raises(UserError, match="the devices are 2 slices"):
        submesh.for_these_devices(1)
