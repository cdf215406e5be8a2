# SPDX-License-Identifier: Apache-2.0
"""Trees: T5X's paths, flat and nested forms, and what is read off shapes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcmoe import tree

STATE = {
    "target/encoder/a/kernel": 1,
    "target/decoder/b/scale": 2,
    "state/step": 3,
    "state/param_states/encoder/a/kernel/m": 4,
    "state/param_states/encoder/a/kernel/v_row": 5,
}


def test_a_state_is_split_and_joined() -> None:
    step, params, param_states = tree.split(STATE)
    assert step == 3
    assert params == tree.parameters(STATE) == {"encoder/a/kernel": 1, "decoder/b/scale": 2}
    # A parameter whose optimizer keeps nothing for it has an empty state, not none.
    assert param_states == {"encoder/a/kernel": {"m": 4, "v_row": 5}, "decoder/b/scale": {}}
    assert tree.joined(step, params, param_states) == STATE
    assert tree.parameters(tree.as_state(params)) == params


def test_every_path_tells_what_it_belongs_to() -> None:
    assert [tree.parameter_of(path) for path in STATE] == [
        "encoder/a/kernel",
        "decoder/b/scale",
        None,
        "encoder/a/kernel",
        "encoder/a/kernel",
    ]
    assert [path for path in STATE if tree.is_parameter(path)] == list(STATE)[:2]
    assert [path for path in STATE if tree.is_optimizer(path)] == list(STATE)[3:]


def test_nested_and_flat_are_the_same_tree() -> None:
    nest = tree.nested(STATE)
    assert nest["state"] == {
        "step": 3,
        "param_states": {"encoder": {"a": {"kernel": {"m": 4, "v_row": 5}}}},
    }
    assert tree.flattened(nest) == STATE
    assert list(tree.flattened(nest)) == sorted(STATE, key=lambda path: path[0] != "t")


def test_flattening_can_stop_at_a_mapping_and_forgets_empty_ones() -> None:
    nest = {"a": {"spec": {"driver": "zarr"}}, "b": {}, "c": 1}
    stopped = tree.flattened(nest, is_leaf=lambda mapping: "driver" in mapping)
    assert stopped == {"a/spec": {"driver": "zarr"}, "c": 1}
    with pytest.raises(ValueError, match="not text: 7"):
        tree.flattened({"a": {7: 1}})


def test_shapes_and_bytes_of_anything_that_has_a_shape() -> None:
    leaves = [
        np.zeros((2, 3), np.float32),
        jnp.zeros((4,), jnp.bfloat16),
        jax.ShapeDtypeStruct((), np.int32),
    ]
    assert [str(tree.shape_dtype(leaf)) for leaf in leaves] == [
        "float32[2, 3]",
        "bfloat16[4]",
        "int32[]",
    ]
    assert tree.total_bytes(leaves) == 24 + 8 + 4
    assert tree.total_values(leaves) == 6 + 4 + 1


def test_logical_axes_are_those_of_the_full_size_tree() -> None:
    recorded = Path(__file__).parent / "testdata" / "st_moe_base_tree.json.gz"
    params = tree.parameters(json.loads(gzip.decompress(recorded.read_bytes()))["tree"])
    assert len(params) > 100
    for name, leaf in params.items():
        assert list(tree.logical_axes(name)) == leaf["axes"], name
    with pytest.raises(KeyError, match="no logical axes are known"):
        tree.logical_axes("encoder/unknown/kernel")
