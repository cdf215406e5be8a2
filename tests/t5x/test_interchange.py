# SPDX-License-Identifier: Apache-2.0
"""Both engines take the same 20 steps, and each goes on from a checkpoint the other wrote.

T5X is configured by our own gin files, down to its MoE trainer, which scales the gradients of experts,
and its partitioner, which on a CPU splits every matrix over all devices; the engine computes on one.
The batches are the engine's, so that nothing but the engines differs.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.t5x, pytest.mark.slow, pytest.mark.filterwarnings("default")]

STEPS, HALF = 20, 10
TOLERANCE = 1e-5
Batch = Mapping[str, np.ndarray]
ROOT = Path(__file__).parents[2]


class Engine:
    """Ours: the update that `kcmoe train` compiles."""

    def __init__(self, macros: Any):
        import jax

        from kcmoe.training import state, update
        from kcmoe.training.settings import Settings

        self.settings = settings = Settings.from_macros(macros)
        self._update = jax.jit(update.make_update(update.of_run(settings)))
        self.fresh = state.init_state(settings.model, 3, settings.optimizer)

    def train(self, state: Any, batches: Sequence[Batch]) -> tuple[Any, list[float]]:
        losses = []
        for batch in batches:
            state, metrics = self._update(state, {name: x[None] for name, x in batch.items()})
            losses.append(float(metrics["loss"]))
        return state, losses

    def save(self, state: Any, folder: Path) -> Path:
        from kcmoe import checkpoint
        from kcmoe.training.state import to_flat

        flat = {path: np.asarray(leaf) for path, leaf in to_flat(state).items()}
        return checkpoint.save(folder, int(state.step), flat)

    def load(self, path: Path) -> Any:
        import jax

        from kcmoe import checkpoint
        from kcmoe.training import state

        expected = state.to_flat(state.state_shapes(self.settings.model, self.settings.optimizer))
        return jax.tree.map(jax.numpy.asarray, state.from_flat(checkpoint.restore(path, expected)))


class T5X:
    """Theirs: what `t5x.train` is given by our gin files."""

    def __init__(self, files: Sequence[str], bindings: Sequence[str], features: Batch):
        import gin
        import jax
        from t5x import utils

        self._parts = _configured(gin, files, bindings)
        self._model, self._partitioner = self._parts["model"], self._parts["partitioner"]
        self._initializer = utils.TrainStateInitializer(
            optimizer_def=self._model.optimizer_def,
            init_fn=self._model.get_initial_variables,
            input_shapes={name: x.shape for name, x in features.items()},
            partitioner=self._partitioner,
        )
        self._blank = self._initializer.from_scratch(jax.random.PRNGKey(0))

    @property
    def num_devices(self) -> int:
        return self._partitioner.mesh.size

    def train(self, state: Any, batches: Sequence[Batch]) -> tuple[Any, list[float]]:
        import jax

        losses = []
        with self._parts["trainer_cls"](
            model=self._model,
            train_state=jax.tree.map(jax.numpy.copy, state),
            partitioner=self._partitioner,
            eval_names=[],
            summary_dir=None,
            train_state_axes=self._initializer.train_state_axes,
            rng=jax.random.PRNGKey(0),
        ) as trainer:
            for batch in batches:
                metrics = trainer.train(iter([dict(batch)]), 1).result()
                losses.append(float(np.asarray(metrics["loss"].value)))
            return trainer.train_state, losses

    def _manager(self, folder: Path, state: Any) -> Any:
        from t5x import checkpoints

        return checkpoints.OrbaxCheckpointManagerInterface(str(folder), state, self._partitioner)

    def save(self, state: Any, folder: Path) -> Path:
        folder.mkdir()
        manager = self._manager(folder, state)
        manager.save(state)
        manager.wait_until_finished()
        manager.close()
        return folder / f"checkpoint_{int(state.step)}"

    def load(self, path: Path) -> Any:
        return self._manager(path.parent, self._blank).restore(path=str(path))


def _configured(gin: Any, files: Sequence[str], bindings: Sequence[str]) -> dict[str, Any]:
    """The arguments that our gin files give to the function `train` of the program that runs."""
    program = types.ModuleType("__main__")

    def train(**settings: Any) -> dict[str, Any]:
        return settings

    train.__module__, train.__qualname__ = "__main__", "train"  # as gin sees it in t5x.train
    program.train = train  # type: ignore[attr-defined]
    real = sys.modules["__main__"]
    sys.modules["__main__"] = program
    try:
        gin.clear_config(clear_constants=True)
        gin.add_config_file_search_path(str(ROOT))
        configured = gin.configurable(train)
        gin.parse_config_files_and_bindings(list(files), list(bindings))
        return configured()
    finally:
        sys.modules["__main__"] = real


@pytest.fixture(scope="module")
def batches(macros: Any) -> list[Batch]:
    from kcmoe.data.settings import training_batches
    from kcmoe.vocabulary import Vocabulary

    found = training_batches(macros, Vocabulary())
    return [found.at(step) for step in range(STEPS)]


FILES = ["configs/runs/pretrain_sample.gin", "configs/t5x/train.gin"]


@pytest.fixture(scope="module")
def bindings(small: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("model")
    # Groups of 64 tokens and tight capacity, so that tokens are dropped in every step.
    extra = {
        "GROUP_SIZE": 64,
        "BATCH_SIZE": 8,
        "SCALE": 1.0,
        "NUM_HEADS": 4,
        "MODEL_DIR": str(folder),
    }
    return [f"{name}={value!r}" for name, value in {**small, **extra}.items()]


@pytest.fixture(scope="module")
def macros(bindings: list[str]) -> Any:
    from kcmoe.config import gin_files

    return gin_files.parse(["configs/engine/engine.gin", *FILES], bindings, foreign=True)


@pytest.fixture(scope="module")
def engine(macros: Any) -> Engine:
    return Engine(macros)


@pytest.fixture(scope="module")
def t5x(bindings: list[str], batches: list[Batch]) -> Iterator[T5X]:
    import gin

    yield T5X(FILES, bindings, batches[0])
    gin.clear_config(clear_constants=True)


@pytest.fixture(scope="module")
def start(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine.save(engine.fresh, tmp_path_factory.mktemp("start"))


def close(ours: Sequence[float], theirs: Sequence[float]) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE)


def test_the_losses_of_twenty_steps_agree_and_so_do_the_states(
    engine: Engine, t5x: T5X, start: Path, batches: list[Batch]
) -> None:
    assert t5x.num_devices > 1, "theirs is divided over devices, ours is not"
    assert engine.settings.run.num_expert_partitions == 4, (
        "the factor of expert gradients is in play"
    )
    ours, our_losses = engine.train(engine.load(start), batches)
    theirs, their_losses = t5x.train(t5x.load(start), batches)
    assert our_losses[-1] < our_losses[0] - 0.5, "something was learnt"
    close(our_losses, their_losses)

    from flax import traverse_util

    from kcmoe.training.state import to_flat

    flat = traverse_util.flatten_dict(theirs.state_dict(), sep="/")
    for path, leaf in to_flat(ours).items():
        mine, other = np.asarray(leaf), np.asarray(flat[path])
        assert np.max(np.abs(mine - other)) <= 1e-4 * np.max(np.abs(other)), path


def test_the_engine_goes_on_from_t5x(
    engine: Engine, t5x: T5X, start: Path, batches: list[Batch], tmp_path: Path
) -> None:
    state, _ = t5x.train(t5x.load(start), batches[:HALF])
    saved = t5x.save(state, tmp_path / "run")
    _, on_t5x = t5x.train(state, batches[HALF:])
    ours = engine.load(saved)
    assert int(ours.step) == HALF
    close(engine.train(ours, batches[HALF:])[1], on_t5x)


def test_t5x_goes_on_from_the_engine(
    engine: Engine, t5x: T5X, start: Path, batches: list[Batch], tmp_path: Path
) -> None:
    state, _ = engine.train(engine.load(start), batches[:HALF])
    saved = engine.save(state, tmp_path / "run")
    _, on_engine = engine.train(state, batches[HALF:])
    theirs = t5x.load(saved)
    assert int(theirs.step) == HALF
    close(on_engine, t5x.train(theirs, batches[HALF:])[1])
