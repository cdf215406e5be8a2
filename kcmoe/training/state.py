# SPDX-License-Identifier: Apache-2.0
"""The training state, and its flat form: the tree T5X writes to checkpoints.

T5X's paths are "target/<parameter>", "state/step" and "state/param_states/<parameter>/{m,v,v_col,v_row}"
(t5x@cc342d4:t5x/train_state.py). They are a public interface.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array

from kcmoe.config.model import ModelConfig
from kcmoe.model.encoder_decoder import EncoderDecoder
from kcmoe.training import adafactor

Flat = dict[str, Any]  # path -> array or jax.ShapeDtypeStruct


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "param_states"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything training changes.

    Attributes:
      step: int32 scalar, steps taken, pretraining included.
      params: path -> float32 array.
      param_states: path -> Adafactor's {m, v, v_col, v_row}.
    """

    step: Array
    params: Flat
    param_states: dict[str, Flat]


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}, the form Flax modules take."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def flattened(tree: Mapping[str, Any]) -> Flat:
    """{"a": {"b": x}} -> {"a/b": x}."""
    return traverse_util.flatten_dict(tree, sep="/")


def init_params(config: ModelConfig, seed: int) -> Flat:
    """Fresh parameters: path -> float32 array. Under `jax.eval_shape` nothing is allocated."""
    ids = jnp.zeros((1, config.num_experts), jnp.int32)
    variables = EncoderDecoder(config).init(jax.random.key(seed), ids, ids, ids)
    return flattened(variables["params"])


def init_state(config: ModelConfig, seed: int) -> TrainState:
    """A fresh state at step 0."""
    params = init_params(config, seed)
    return TrainState(jnp.zeros((), jnp.int32), params, adafactor.init(params))


def state_shapes(config: ModelConfig) -> TrainState:
    """Shapes and dtypes of `init_state`, without allocating anything."""
    return jax.eval_shape(lambda: init_state(config, 0))


def to_flat(state: TrainState) -> Flat:
    """The state as T5X's checkpoint tree, flat."""
    flat: Flat = {f"target/{path}": leaf for path, leaf in state.params.items()}
    flat["state/step"] = state.step
    for path, leaves in state.param_states.items():
        flat |= {f"state/param_states/{path}/{name}": leaf for name, leaf in leaves.items()}
    return flat


def from_flat(flat: Mapping[str, Any]) -> TrainState:
    """Inverse of `to_flat`. The caller has checked that every leaf is there."""
    params = {p.removeprefix("target/"): x for p, x in flat.items() if p.startswith("target/")}
    prefix = "state/param_states/"
    states = {
        path: {name: flat[f"{prefix}{path}/{name}"] for name in ("m", "v", "v_col", "v_row")}
        for path in params
    }
    return TrainState(flat["state/step"], params, states)
