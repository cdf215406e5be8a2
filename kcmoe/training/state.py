# SPDX-License-Identifier: Apache-2.0
"""The training state, and its flat form: the tree T5X writes to checkpoints (see `kcmoe.tree`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kcmoe import tree
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


def init_params(config: ModelConfig, seed: int) -> Flat:
    """Fresh parameters: path -> float32 array. Under `jax.eval_shape` nothing is allocated."""
    ids = jnp.zeros((1, config.num_experts), jnp.int32)
    variables = EncoderDecoder(config).init(jax.random.key(seed), ids, ids, ids)
    return tree.flattened(variables["params"])


def init_state(config: ModelConfig, seed: int) -> TrainState:
    """A fresh state at step 0."""
    params = init_params(config, seed)
    return TrainState(jnp.zeros((), jnp.int32), params, adafactor.init(params))


def state_shapes(config: ModelConfig) -> TrainState:
    """Shapes and dtypes of `init_state`, without allocating anything."""
    return jax.eval_shape(lambda: init_state(config, 0))


def to_flat(state: TrainState) -> Flat:
    """The state as T5X's checkpoint tree, flat."""
    return tree.joined(state.step, state.params, state.param_states)


def from_flat(flat: Mapping[str, Any]) -> TrainState:
    """Inverse of `to_flat`. The caller has checked that every leaf is there."""
    return TrainState(*tree.split(flat))
