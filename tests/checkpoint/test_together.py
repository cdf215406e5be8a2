# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that several processes write is the one that one process writes, and whole or not there."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kcmoe import checkpoint as checkpoints
from kcmoe.checkpoint import checksums, partial_sums
from kcmoe.tree import shape_dtype

RNG = np.random.default_rng(0)


def blocks(shape: tuple[int, ...], parts: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """The array of this shape in so many parts along each axis."""
    axes = [
        [slice(n * size // count, (n + 1) * size // count) for n in range(count)]
        for size, count in zip(shape, parts, strict=True)
    ]
    return list(itertools.product(*axes))


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        *(((), ()), ((5,), (1,)), ((4, 6, 8), (2, 1, 1)), ((4, 6, 8), (1, 3, 1))),
        *(((4, 6, 8), (1, 1, 4)), ((4, 6, 8), (2, 3, 2)), ((300, 7), (100, 1))),
    ],
)
def test_sums_of_parts_give_the_checksum_of_the_whole(
    shape: tuple[int, ...], parts: tuple[int, ...]
) -> None:
    array = np.asarray(RNG.normal(size=shape), np.float32)
    leaf = shape_dtype(array)
    found = [partial_sums.part_of(leaf, [(at, array[at])]) for at in blocks(shape, parts)]
    assert partial_sums.joined(leaf, found) == checksums.checksum(array)
    if len(found) > 1:
        assert partial_sums.joined(leaf, found[1:]) != checksums.checksum(array)
        together = partial_sums.part_of(leaf, [(at, array[at]) for at in blocks(shape, parts)])
        assert partial_sums.joined(leaf, [together]) == checksums.checksum(array)


PROGRAM = """
import sys
from pathlib import Path
import jax, ml_dtypes, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from kcmoe import checkpoint
from kcmoe.errors import UserError
from kcmoe.hosts import joining

def arrays(put):
    x = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    return {
        "state/step": put(np.int32(7)),
        "target/a/kernel": put(x, "e"),
        "target/b/kernel": put(x + 1, "d", None, "e"),
        "target/c/kernel": put(x + 2, None, "e"),
        "target/d/scale": put(x[0, 0]),
        "target/e/kernel": put(x[0] + 3),
        "state/param_states/a/kernel/v": put(x.astype(ml_dtypes.bfloat16), ("d", "e")),
    }

index, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
with joining.joined(joining.Member(f"127.0.0.1:{port}", 2, index)) as hosts:
    mesh = Mesh(np.array(hosts.devices()).reshape(-1, 2), ("d", "e"))
    def put(x, *axes):
        at = NamedSharding(mesh, P(*axes))
        return jax.make_array_from_callback(x.shape, at, lambda part: x[part])
    state = arrays(put)
    path = checkpoint.save(folder, 7, state, {"training.json": b"{}"}, hosts)
    restored = checkpoint.restore(path, state)
    for name, array in state.items():
        for one, other in zip(array.addressable_shards, restored[name].addressable_shards):
            np.testing.assert_array_equal(np.asarray(one.data), np.asarray(other.data))
    if index == 1:  # its disk is full while it writes its part of another one
        from kcmoe.checkpoint import orbax_writing
        def full(*args):
            raise OSError(28, "No space left on device")
        orbax_writing.Database.write = full
    try:
        checkpoint.save(folder, 7, state, {"training.json": b"{}"}, hosts)
    except UserError as error:
        print("refused:", error)
    if index == 0:
        checkpoint.save(folder / "alone", 7, arrays(lambda x, *axes: x), {"training.json": b"{}"})
"""


def test_two_processes_write_what_one_would(tmp_path: Path) -> None:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(index), str(port), str(tmp_path)],
            env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for output in outputs:
        assert "no space left to write" in output.splitlines()[-1]
    assert "refused: host 1 (" in outputs[0]
    # The save that failed left the one before it as it was, and nothing else.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "checkpoint_7"]
    shared, alone = tmp_path / "checkpoint_7", tmp_path / "alone" / "checkpoint_7"
    kinds = {path.name for path in (shared / "state").iterdir()}
    assert {"ocdbt.process_0", "ocdbt.process_1", "manifest.ocdbt", "_METADATA"} <= kinds
    assert (shared / checksums.NAME).read_bytes() == (alone / checksums.NAME).read_bytes()
    one, other = checkpoints.open_checkpoint(shared), checkpoints.open_checkpoint(alone)
    assert one.tree() == other.tree()
    assert all(one.read(path).tobytes() == other.read(path).tobytes() for path in other.tree())
