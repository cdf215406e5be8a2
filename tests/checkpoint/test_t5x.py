# SPDX-License-Identifier: Apache-2.0
"""T5X itself restores our checkpoints, goes on from them as from its own, and we restore its saves."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kcmoe import checkpoint
from kcmoe.tree import logical_axes

pytestmark = [
    pytest.mark.t5x,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default", "ignore::ResourceWarning"),
]
CASE, STEP = "factored_unpacked", 6


class T5X:
    """T5X's own train state, optimizer, partitioner and checkpointers for the tree of a case."""

    def __init__(self, own_checkpoint: Path):
        from flax import traverse_util
        from flax.core import freeze
        from flax.linen import partitioning
        from t5x import adafactor, train_state
        from t5x.contrib.moe import adafactor_utils
        from t5x.contrib.moe.partitioning import MoePjitPartitioner

        tree = checkpoint.open_checkpoint(own_checkpoint).tree()
        paths = [path for path in tree if path.startswith("target/")]
        params = {tuple(p.split("/")[1:]): np.full(tree[p].shape, 3, np.float32) for p in paths}
        axes = {
            (*names[:-1], f"{names[-1]}_axes"): partitioning.AxisMetadata(
                names=logical_axes("/".join(names))
            )
            for names in params
        }
        optimizer = adafactor.Adafactor(
            learning_rate=1e-3,
            decay_rate=0.8,
            logical_factor_rules=adafactor_utils.logical_factor_rules(),
        )
        nest = traverse_util.unflatten_dict
        variables = {"params": nest(params), "params_axes": nest(axes)}
        self.blank = train_state.FlaxOptimTrainState.create(optimizer, freeze(variables))
        self.partitioner = MoePjitPartitioner(
            num_expert_partitions=1, model_parallel_submesh=(1, 1, 1, 1)
        )

    def manager(self, directory: Path) -> Any:
        from t5x import checkpoints

        return checkpoints.OrbaxCheckpointManagerInterface(
            str(directory), self.blank, self.partitioner
        )

    def restore(self, path: Path) -> Any:
        """What `t5x.train` does with a checkpoint: the Orbax manager, whatever the format."""
        manager = self.manager(path.parent)
        restored = manager.restore(path=str(path))
        manager.close()
        return restored

    def restore_old(self, path: Path) -> Any:
        """The old checkpointer, for its own format."""
        from t5x import checkpoints

        old = checkpoints.Checkpointer(self.blank, self.partitioner, str(path.parent))
        return old.restore(path=str(path))

    def flat(self, state: Any) -> dict[str, np.ndarray]:
        from flax import traverse_util

        flat = traverse_util.flatten_dict(state.state_dict(), sep="/")
        return {path: np.asarray(array) for path, array in flat.items()}

    def next_step(self, state: Any) -> Any:
        import jax

        rng = np.random.default_rng(1)
        gradients = jax.tree.map(
            lambda p: rng.normal(scale=0.01, size=p.shape).astype(np.float32), state.params
        )
        return state.apply_gradient(gradients, learning_rate=1e-3)


@pytest.fixture(autouse=True)
def _event_loops_that_t5x_leaves_open() -> Iterator[None]:
    """Collects them while their warnings are ignored, or a later test would be blamed."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def t5x() -> T5X:
    folder = Path(__file__).parents[2] / "../shared/reference" / CASE
    if not folder.is_dir():
        pytest.skip("the reference cases are not beside this repository")
    return T5X(folder / f"t5x_orbax/checkpoint_{STEP}")


@pytest.fixture
def theirs(reference: Path) -> Path:
    return reference / CASE / f"t5x_orbax/checkpoint_{STEP}"


@pytest.mark.parametrize("format", ["t5x_orbax", "t5x_legacy"])
def test_t5x_restores_ours_and_goes_on_as_from_its_own(
    format: str,
    t5x: T5X,
    theirs: Path,
    write: Callable[..., Path],
    same: Callable[..., None],
) -> None:
    values = dict(
        checkpoint.open_checkpoint(theirs).read_all(checkpoint.open_checkpoint(theirs).tree())
    )
    extras = {"training.json": b"{}", "config.json": b"{}"}  # of a run, and of a conversion
    ours = write(values, format, name=f"run/checkpoint_{STEP}", extras=extras)
    restored = t5x.restore(ours)
    same(values, t5x.flat(restored))
    same(t5x.flat(t5x.next_step(restored)), t5x.flat(t5x.next_step(t5x.restore(theirs))))
    if format == "t5x_legacy":
        same(values, t5x.flat(t5x.restore_old(ours)))


def test_we_restore_what_t5x_saves_after_restoring_ours(
    t5x: T5X, theirs: Path, tmp_path: Path, same: Callable[..., None]
) -> None:
    values = dict(
        checkpoint.open_checkpoint(theirs).read_all(checkpoint.open_checkpoint(theirs).tree())
    )
    checkpoint.save(tmp_path, STEP, values)
    after = t5x.next_step(t5x.restore(tmp_path / f"checkpoint_{STEP}"))
    manager = t5x.manager(tmp_path)
    assert manager.latest_step() == STEP
    manager.save(after)
    manager.wait_until_finished()
    manager.close()
    newest = checkpoint.latest(tmp_path)
    assert newest == tmp_path / f"checkpoint_{STEP + 1}"
    flat = t5x.flat(after)
    same(flat, checkpoint.restore(newest, flat))
