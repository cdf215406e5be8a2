# SPDX-License-Identifier: Apache-2.0
"""How tokens travel to experts and back, given the router's decisions.

Four ways with the same result up to float rounding:
- `gather`: slots hold row numbers; rows are gathered to [E, M/E, D], multiplied expert by expert, and
  gathered back. Both gradients are gathers as well (a token has at most A slots), never scatters.
- `einsum`: Flaxformer's one-hot masks (flaxformer@399ea3a:architectures/moe/moe_layers.py). It costs
  more FLOPs than the experts themselves and exists for devices that gather badly, and as a check.
- `grouped`: rows sorted by expert, each expert's share as long as it is: no empty slots but the last few
  of each expert, and nothing dropped that was not to be dropped. See `grouped_dot`.
- `ragged`: the same without the empty slots, through XLA's `ragged_dot`, which some devices do well and
  others by multiplying every row by every expert.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kcmoe.model.dispatch_choice import grouped_rows
from kcmoe.model.routing import Routing, earlier_equal


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["slot_of_NxA", "choice_of_M", "experts_of_blocks"],
    meta_fields=["num_slots", "block"],
)
@dataclasses.dataclass(frozen=True)
class Slots:
    """A one-to-one map between kept choices and slots.

    Attributes:
      slot_of_NxA: int32, the slot of each choice; `num_slots` if dropped.
      choice_of_M: int32, n * A + a of the choice in each slot; N * A if the slot is empty.
      experts_of_blocks: int32[M / block], the expert of each block; used by `grouped` only.
      num_slots: M.
      block: rows per block.
    """

    slot_of_NxA: Array
    choice_of_M: Array
    experts_of_blocks: Array
    num_slots: int
    block: int


def _with_inverse(
    slot_of_NxA: Array, experts_of_blocks: Array, num_slots: int, block: int
) -> Slots:
    choices = slot_of_NxA.size
    choice_of_M = jnp.full((num_slots,), choices, jnp.int32)
    choice_of_M = choice_of_M.at[slot_of_NxA.reshape(-1)].set(
        jnp.arange(choices, dtype=jnp.int32), mode="drop", unique_indices=False
    )
    return Slots(slot_of_NxA, choice_of_M, experts_of_blocks, num_slots, block)


def capacity_slots(routing: Routing, experts: int, capacity: int) -> Slots:
    """Slots in the order [E, G, C], `capacity` per expert and group; later choices are dropped."""
    groups, tokens, selected = routing.expert_GxTxA.shape
    group = jnp.arange(groups, dtype=jnp.int32)[:, None, None]
    slot = (routing.expert_GxTxA * groups + group) * capacity + routing.place_GxTxA
    num_slots = experts * groups * capacity
    slot = jnp.where(routing.place_GxTxA < capacity, slot, num_slots)
    by_expert = jnp.arange(experts, dtype=jnp.int32)
    return _with_inverse(
        slot.reshape(groups * tokens, selected), by_expert, num_slots, groups * capacity
    )


def grouped_slots(expert_NxA: Array, kept_NxA: Array, experts: int, block: int) -> Slots:
    """Slots sorted by expert, each expert's share padded to whole blocks, for choices in bool `kept_NxA`."""
    choices = expert_NxA.size
    # The others go to one more expert, which has no slots.
    flat = jnp.where(kept_NxA, expert_NxA, experts).reshape(-1)
    place = earlier_equal(flat[None], experts)[0]
    counts_E = jnp.sum(flat[:, None] == jnp.arange(experts), axis=0, dtype=jnp.int32)
    blocks_E = (counts_E + block - 1) // block
    up_to = np.tri(experts, dtype=np.int32)  # a cumulative sum, cheaper to compile
    ends_E = jnp.sum(up_to * blocks_E, axis=1)
    num_blocks = grouped_rows(choices, experts, block) // block
    starts = jnp.append((ends_E - blocks_E) * block, num_blocks * block)
    slot = starts[flat] + place
    ended = ends_E[None, :] <= jnp.arange(num_blocks)[:, None]
    expert_of_block = jnp.minimum(jnp.sum(ended, axis=1), experts - 1).astype(jnp.int32)
    return _with_inverse(
        slot.reshape(expert_NxA.shape).astype(jnp.int32), expert_of_block, num_blocks * block, block
    )


def _rows(x: Array, index: Array) -> Array:
    """x[index] with zeros where the index is one past the end."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def to_slots(x_NxD: Array, slots: Slots) -> Array:
    """float[N, D] -> float[M, D]: each slot holds its token, empty slots hold zeros."""
    return _rows(x_NxD, slots.choice_of_M // slots.slot_of_NxA.shape[1])


def _to_slots_fwd(x_NxD: Array, slots: Slots) -> tuple[Array, Slots]:
    return to_slots(x_NxD, slots), slots


def _to_slots_bwd(slots: Slots, dy_MxD: Array) -> tuple[Array, Any]:
    columns = [_rows(dy_MxD, slots.slot_of_NxA[:, a]) for a in range(slots.slot_of_NxA.shape[1])]
    return sum(columns[1:], start=columns[0]), _no_gradient(slots)


to_slots.defvjp(_to_slots_fwd, _to_slots_bwd)


@jax.custom_vjp
def from_slots(y_MxD: Array, gate_NxA: Array, slots: Slots) -> Array:
    """float[M, D], float[N, A] -> float[N, D]: gate-weighted sum of each token's slots."""
    columns = [
        gate_NxA[:, a, None].astype(y_MxD.dtype) * _rows(y_MxD, slots.slot_of_NxA[:, a])
        for a in range(gate_NxA.shape[1])
    ]
    return sum(columns[1:], start=columns[0])


def _from_slots_fwd(
    y: Array, gate: Array, slots: Slots
) -> tuple[Array, tuple[Array, Array, Slots]]:
    return from_slots(y, gate, slots), (y, gate, slots)


def _from_slots_bwd(saved: tuple[Array, Array, Slots], dout_NxD: Array) -> tuple[Array, Array, Any]:
    y_MxD, gate_NxA, slots = saved
    selected = gate_NxA.shape[1]
    gate_M = _rows(gate_NxA.reshape(-1), slots.choice_of_M)
    dy_MxD = gate_M[:, None].astype(y_MxD.dtype) * _rows(dout_NxD, slots.choice_of_M // selected)
    dgate = [
        jnp.sum((dout_NxD * _rows(y_MxD, slots.slot_of_NxA[:, a])).astype(gate_NxA.dtype), axis=-1)
        for a in range(selected)
    ]
    return dy_MxD, jnp.stack(dgate, axis=1), _no_gradient(slots)


from_slots.defvjp(_from_slots_fwd, _from_slots_bwd)


def _no_gradient(slots: Slots) -> Any:
    return jax.tree.map(lambda index: np.zeros(index.shape, jax.dtypes.float0), slots)


def masks(routing: Routing, experts: int, capacity: int) -> tuple[Array, Array]:
    """Flaxformer's dispatch and combine arrays, each float32[G, T, E, C]."""
    expert = jax.nn.one_hot(routing.expert_GxTxA, experts)
    place = jax.nn.one_hot(routing.place_GxTxA, capacity)
    dispatch = jnp.einsum("gtae,gtac->gtec", expert, place)
    combine = jnp.einsum("gta,gtae,gtac->gtec", routing.gate_GxTxA, expert, place)
    return jax.lax.stop_gradient(dispatch), combine


@jax.custom_vjp
def grouped_dot(x_MxD: Array, w_ExDxF: Array, slots: Slots) -> Array:
    """Each block of rows times the matrix of its expert: float[M, D] -> float[M, F].

    A loop over blocks, for CPUs: XLA's own `ragged_dot` there multiplies every row by every expert.
    """
    blocks = x_MxD.reshape(-1, slots.block, x_MxD.shape[-1])

    def product(block_and_expert: tuple[Array, Array]) -> Array:
        block, expert = block_and_expert
        return jnp.dot(block, w_ExDxF[expert])

    y = jax.lax.map(product, (blocks, slots.experts_of_blocks))
    return y.reshape(x_MxD.shape[0], -1)


def _grouped_dot_fwd(x: Array, w: Array, slots: Slots) -> tuple[Array, tuple[Array, Array, Slots]]:
    return grouped_dot(x, w, slots), (x, w, slots)


def _grouped_dot_bwd(saved: tuple[Array, Array, Slots], dy_MxF: Array) -> tuple[Array, Array, Any]:
    x_MxD, w_ExDxF, slots = saved
    dx_MxD = grouped_dot(dy_MxF, jnp.swapaxes(w_ExDxF, 1, 2), slots)
    x_blocks = x_MxD.reshape(-1, slots.block, x_MxD.shape[-1])
    dy_blocks = dy_MxF.reshape(-1, slots.block, dy_MxF.shape[-1])

    def add(dw_ExDxF: Array, item: tuple[Array, Array, Array]) -> tuple[Array, None]:
        x, dy, expert = item
        return dw_ExDxF.at[expert].add(jnp.dot(x.T, dy)), None

    dw, _ = jax.lax.scan(
        add, jnp.zeros_like(w_ExDxF), (x_blocks, dy_blocks, slots.experts_of_blocks)
    )
    return dx_MxD, dw, _no_gradient(slots)


grouped_dot.defvjp(_grouped_dot_fwd, _grouped_dot_bwd)


def ragged_dot(x_MxD: Array, w_ExDxF: Array, slots: Slots) -> Array:
    """As `grouped_dot` for slots with blocks of one row, by XLA's own grouped product."""
    experts = jnp.arange(w_ExDxF.shape[0])
    sizes_E = jnp.sum(slots.experts_of_blocks[:, None] == experts, axis=0, dtype=jnp.int32)
    return jax.lax.ragged_dot(x_MxD, w_ExDxF, sizes_E)
