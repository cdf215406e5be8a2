# SPDX-License-Identifier: Apache-2.0
"""Small states that the checkpoint tests save: T5X's tree in miniature, with every kind of leaf."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from kcmoe.checkpoint.base import Provenance
from kcmoe.checkpoint.writing import write_checkpoint
from kcmoe.tree import shape_dtype

State = dict[str, np.ndarray]
STEP = 7


def make_state(step: int = STEP, seed: int = 0) -> State:
    """26 leaves: matrices, vectors, scalars, factored statistics, two dtypes of parameters."""
    rng = np.random.default_rng(seed)
    parameters = {
        "token_embedder/embedding": (48, 16),
        "encoder/relpos_bias/rel_embedding": (2, 32),
        "encoder/layers_0/attention/query/kernel": (16, 16),
        "encoder/layers_0/mlp/wi_0/kernel": (16, 24),
        "encoder/layers_1/mlp/expert/wi_0/kernel": (4, 16, 24),
        "encoder/layers_1/mlp/router/router_weights/w/kernel": (16, 4),
        "encoder/encoder_norm/scale": (16,),
        "decoder/layers_0/self_attention/query/kernel": (16, 16),
    }
    state: State = {"state/step": np.asarray(step, np.int32)}
    for path, shape in parameters.items():
        state[f"target/{path}"] = rng.normal(size=shape).astype(np.float32)
        statistics = f"state/param_states/{path}"
        state[f"{statistics}/m"] = np.zeros((1,), np.float32)
        if path.startswith("token"):
            state[f"{statistics}/v_row"] = np.square(rng.normal(size=shape[1])).astype(np.float32)
            state[f"{statistics}/v_col"] = np.square(rng.normal(size=shape[0])).astype(np.float32)
        else:
            state[f"{statistics}/v"] = np.square(rng.normal(size=shape)).astype(np.float32)
    state["target/decoder/half/kernel"] = rng.normal(size=(5, 3)).astype(ml_dtypes.bfloat16)
    return state


def expected_of(state: State) -> dict[str, jax.ShapeDtypeStruct]:
    """What a model of that state expects."""
    return {path: jax.ShapeDtypeStruct(a.shape, a.dtype) for path, a in state.items()}


@pytest.fixture
def state() -> State:
    return make_state()


@pytest.fixture
def new_state() -> Callable[..., State]:
    return make_state


@pytest.fixture
def expected(state: State) -> dict[str, jax.ShapeDtypeStruct]:
    return expected_of(state)


@pytest.fixture
def same() -> Callable[[State, State], None]:
    """Asserts that two states are equal bit for bit."""

    def check(left: State, right: State) -> None:
        assert left.keys() == right.keys()
        for path, array in left.items():
            other = np.asarray(right[path])
            assert (array.shape, array.dtype) == (other.shape, other.dtype), path
            assert array.tobytes() == other.tobytes(), path

    return check


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a state in a format below `tmp_path` and returns the checkpoint's folder."""

    def writer(state: State, format: str = "t5x_orbax", name: str = "", **options: object) -> Path:
        final = tmp_path / (name or f"{format}/checkpoint_{STEP}")
        tree = {path: shape_dtype(array) for path, array in state.items()}
        return write_checkpoint(
            final, format, tree, state.items(), about=Provenance(STEP), **options
        )

    return writer


@pytest.fixture
def reference() -> Path:
    """The folder of reference cases that T5X + Flaxformer computed, beside the repository."""
    folder = Path(__file__).parents[2] / "../shared/reference"
    if not folder.is_dir():
        pytest.skip("the reference cases are not beside this repository")
    return folder
