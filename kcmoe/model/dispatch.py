# SPDX-License-Identifier: Apache-2.0
"""How tokens travel to experts and back, given the router's decisions.

Six ways with the same result up to float rounding, each a method of `Dispatch`. The first, `einsum`, can be
read alone. The others are faster on most devices and stand on `Slots`, a map between choices and rows; the
last, `used`, has no gradient.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from kcmoe.config.model import ModelConfig
from kcmoe.model import routing as routing_lib
from kcmoe.model.cpu import gradients
from kcmoe.model.cpu.gradients import rows_at, with_gradient
from kcmoe.model.cpu.used_blocks import UsedBlocks
from kcmoe.model.dispatch_choice import Way, grouped_block, grouped_rows, resolve, used_block
from kcmoe.model.placing import placed
from kcmoe.model.routing import Routing, earlier_equal
from kcmoe.model.tpu import kept


class Rows(Protocol):
    """How rows that wait for their experts are laid out: what `moe.Experts` needs to know about it."""

    def dot(self, x: Array, w_ExDxF: Array) -> Array:
        """Each row times the matrix of its expert: […, D] -> […, F]."""

    def spread(self, values_ExF: Array) -> Array:
        """Each expert's values, broadcastable over its rows."""


class Experts(Protocol):
    """(x, rows) -> what the experts make of the rows `x`, in the same shape."""

    def __call__(self, x: Array, rows: Rows | UsedBlocks) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """The way of one MoE block, for one number of tokens.

    Attributes:
      way: the method that is used.
      experts: E.
      groups: G.
      capacity: C, slots per expert and group; a choice whose place is not below it is dropped.
      mesh: the devices that share the groups and the experts, if several do.
    """

    way: Way
    experts: int
    groups: int
    capacity: int
    mesh: Mesh | None = None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        tokens: int,
        *,
        train: bool,
        platform: str,
        mesh: Mesh | None = None,
    ) -> Dispatch:
        """The dispatch of `config` for a batch of `tokens` tokens on `platform` ("cpu", "gpu", "tpu")."""
        experts = config.num_experts
        groups = routing_lib.num_groups(
            tokens, config.group_size, experts * config.num_expert_replicas
        )
        factor = (
            config.train_expert_capacity_factor if train else config.eval_expert_capacity_factor
        )
        capacity = routing_lib.expert_capacity(factor, tokens // groups, experts)
        if config.routing == "dropless":
            capacity = tokens // groups  # a token chooses an expert at most once
        way = resolve(
            config.dispatch,
            config.routing,
            tokens,
            slots=experts * groups * capacity,
            choices=tokens * config.num_selected_experts,
            experts=experts,
            platform=platform,
        )
        return cls(way, experts, groups, capacity, mesh)

    def __call__(self, x_GxTxD: Array, routing: Routing, experts: Experts) -> Array:
        """Sends tokens to their experts: for each token the sum of gate * expert's output, dtype[G, T, D]."""
        ways = {
            "einsum": self.einsum,
            "gather": self.gather,
            "exchange": self.exchange,
            "grouped": self.grouped,
            "ragged": self.ragged,
            "used": self.used,
        }
        return ways[self.way](x_GxTxD, routing, experts)

    def einsum(self, x_GxTxD: Array, routing: Routing, experts: Experts) -> Array:
        """The plain way: products with Flaxformer's one-hot masks.

        flaxformer@399ea3a:architectures/moe/moe_layers.py. It costs more FLOPs than the experts themselves
        and exists for devices that gather badly, and as a check of the others.
        """
        expert_GxTxAxE = jax.nn.one_hot(routing.expert_GxTxA, self.experts)
        place_GxTxAxC = jax.nn.one_hot(routing.place_GxTxA, self.capacity)  # zeros where dropped
        sent_GxTxExC = jnp.einsum("gtae,gtac->gtec", expert_GxTxAxE, place_GxTxAxC)
        gate_GxTxExC = jnp.einsum(
            "gta,gtae,gtac->gtec", routing.gate_GxTxA, expert_GxTxAxE, place_GxTxAxC
        )
        sent_GxTxExC = jax.lax.stop_gradient(sent_GxTxExC).astype(x_GxTxD.dtype)
        x_GxExCxD = jnp.einsum("gtd,gtec->gecd", x_GxTxD, sent_GxTxExC)
        y_GxExCxD = self._at_experts(x_GxExCxD, experts)
        return jnp.einsum("gecd,gtec->gtd", y_GxExCxD, gate_GxTxExC.astype(y_GxExCxD.dtype))

    def gather(self, x_GxTxD: Array, routing: Routing, experts: Experts) -> Array:
        """Rows are gathered to their slots, multiplied expert by expert, and gathered back."""
        slots = capacity_slots(routing, self.experts, self.capacity)
        x_MxD = to_slots(x_GxTxD.reshape(-1, x_GxTxD.shape[-1]), slots)
        y = experts(x_MxD.reshape(self.experts, -1, x_MxD.shape[1]), ByExpert())
        return self._back(y.reshape(x_MxD.shape), routing, slots)

    def exchange(self, x_GxTxD: Array, routing: Routing, experts: Experts) -> Array:
        """As `gather`, each group by itself: only what lies in slots travels from device to device."""
        slots = jax.vmap(
            functools.partial(local_slots, experts=self.experts, capacity=self.capacity)
        )(routing.expert_GxTxA, routing.place_GxTxA)
        x_GxMxD = jax.vmap(to_slots)(x_GxTxD, slots)
        x_GxExCxD = x_GxMxD.reshape(self.groups, self.experts, self.capacity, -1)
        y_GxExCxD = self._at_experts(x_GxExCxD, experts)
        return jax.vmap(from_slots)(y_GxExCxD.reshape(x_GxMxD.shape), routing.gate_GxTxA, slots)

    def _at_experts(self, x_GxExCxD: Array, experts: Experts) -> Array:
        """What the experts make of each group's slots; between devices it is there and back an all-to-all."""
        x_GxExCxD = placed(x_GxExCxD, self.mesh, "rows")
        # What has travelled is kept: it would travel again for the backward pass.
        x_ExGxCxD = kept(placed(jnp.swapaxes(x_GxExCxD, 0, 1), self.mesh, "experts", "groups"))
        y = experts(x_ExGxCxD.reshape(self.experts, -1, x_ExGxCxD.shape[-1]), ByExpert())
        y_ExGxCxD = placed(y.reshape(x_ExGxCxD.shape), self.mesh, "experts", "groups")
        return kept(placed(jnp.swapaxes(y_ExGxCxD, 0, 1), self.mesh, "rows"))

    def grouped(self, x_GxTxD: Array, routing: Routing, experts: Experts) -> Array:
        """Rows sorted by expert, each expert's share as long as it is, but for the end of its last block."""
        block = grouped_block(routing.expert_GxTxA.size, self.experts)
        slots, expert_of_block = self._sorted(routing, block)
        x_MxD = to_slots(x_GxTxD.reshape(-1, x_GxTxD.shape[-1]), slots)
        return self._back(experts(x_MxD, InBlocks(expert_of_block, block)), routing, slots)

    def ragged(self, x_GxTxD: Array, routing: Routing, experts: Experts) -> Array:
        """As `grouped` without empty slots, through XLA's `ragged_dot`.

        Some devices do that well, others (CPUs) by multiplying every row by every expert.
        """
        slots, expert_of_row = self._sorted(routing, block=1)
        x_MxD = to_slots(x_GxTxD.reshape(-1, x_GxTxD.shape[-1]), slots)
        return self._back(experts(x_MxD, SortedRows(expert_of_row, self.experts)), routing, slots)

    def used(self, x_GxTxD: Array, routing: Routing, experts: Experts) -> Array:
        """As `grouped`, but only for blocks that hold a row, each through all products of its expert at once.

        For answering on CPUs: how many blocks those are is known when it runs, so there is no gradient. All
        blocks are so small that XLA multiplies them by one kernel: a row's numbers are those of any batch.
        """
        block = used_block(routing.expert_GxTxA.size, self.experts)
        slots, expert_of_block = self._sorted(routing, block)
        x_MxD = to_slots(x_GxTxD.reshape(-1, x_GxTxD.shape[-1]), slots)
        first_of_block = slots.choice_of_M.reshape(-1, block)[:, 0]
        used = jnp.sum(first_of_block < routing.expert_GxTxA.size, dtype=jnp.int32)
        rows = UsedBlocks(expert_of_block, used, block)
        return self._back(experts(x_MxD, rows), routing, slots)

    def _sorted(self, routing: Routing, block: int) -> tuple[Slots, Array]:
        """`grouped_slots` of what the capacity leaves."""
        expert_NxA = routing.expert_GxTxA.reshape(-1, routing.expert_GxTxA.shape[-1])
        kept_NxA = (routing.place_GxTxA < self.capacity).reshape(expert_NxA.shape)
        return grouped_slots(expert_NxA, kept_NxA, self.experts, block)

    def _back(self, y_MxD: Array, routing: Routing, slots: Slots) -> Array:
        """Each token's gate-weighted sum, dtype[G, T, D]."""
        groups, tokens, selected = routing.gate_GxTxA.shape
        y_NxD = from_slots(y_MxD, routing.gate_GxTxA.reshape(-1, selected), slots)
        return y_NxD.reshape(groups, tokens, -1)


class ByExpert:
    """`Rows` of equally many rows per expert: x is [E, M/E, D]."""

    def dot(self, x: Array, w_ExDxF: Array) -> Array:
        return jnp.einsum("emd,edf->emf", x, w_ExDxF)

    def spread(self, values_ExF: Array) -> Array:
        return values_ExF[:, None]


@dataclasses.dataclass(frozen=True)
class InBlocks:
    """`Rows` in blocks of one expert each: x is [M, D]."""

    expert_of_block: Array  # int32[M / block]
    block: int  # rows per block

    def dot(self, x: Array, w_ExDxF: Array) -> Array:
        return grouped_dot(x, w_ExDxF, self.expert_of_block)

    def spread(self, values_ExF: Array) -> Array:
        return jnp.repeat(values_ExF[self.expert_of_block], self.block, axis=0)


@dataclasses.dataclass(frozen=True)
class SortedRows:
    """`Rows` sorted by expert: x is [M, D]."""

    expert_of_row: Array  # int32[M]
    experts: int

    def dot(self, x: Array, w_ExDxF: Array) -> Array:
        is_of_MxE = self.expert_of_row[:, None] == jnp.arange(self.experts)
        return jax.lax.ragged_dot(x, w_ExDxF, jnp.sum(is_of_MxE, axis=0, dtype=jnp.int32))

    def spread(self, values_ExF: Array) -> Array:
        return values_ExF[self.expert_of_row]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["slot_of_NxA", "choice_of_M"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Slots:
    """A one-to-one map between kept choices and M slots.

    Attributes:
      slot_of_NxA: int32, the slot of each choice; M if dropped.
      choice_of_M: int32, n * A + a of the choice in each slot; N * A if the slot is empty.
    """

    slot_of_NxA: Array
    choice_of_M: Array


def _slots(slot_of_NxA: Array, num_slots: int) -> Slots:
    """The map and its inverse."""
    choices = slot_of_NxA.size
    choice_of_M = jnp.full((num_slots,), choices, jnp.int32)
    choice_of_M = choice_of_M.at[slot_of_NxA.reshape(-1)].set(
        jnp.arange(choices, dtype=jnp.int32), mode="drop", unique_indices=False
    )
    return Slots(slot_of_NxA, choice_of_M)


def capacity_slots(routing: Routing, experts: int, capacity: int) -> Slots:
    """Slots in the order [E, G, C], `capacity` per expert and group; later choices are dropped."""
    groups, tokens, selected = routing.expert_GxTxA.shape
    group_Gx1x1 = jnp.arange(groups, dtype=jnp.int32)[:, None, None]
    slot_GxTxA = (routing.expert_GxTxA * groups + group_Gx1x1) * capacity + routing.place_GxTxA
    num_slots = experts * groups * capacity
    slot_GxTxA = jnp.where(routing.place_GxTxA < capacity, slot_GxTxA, num_slots)
    return _slots(slot_GxTxA.reshape(groups * tokens, selected), num_slots)


def local_slots(expert_TxA: Array, place_TxA: Array, *, experts: int, capacity: int) -> Slots:
    """Slots of one group in the order [E, C]."""
    slot_TxA = expert_TxA * capacity + place_TxA
    return _slots(jnp.where(place_TxA < capacity, slot_TxA, experts * capacity), experts * capacity)


def grouped_slots(
    expert_NxA: Array, kept_NxA: Array, experts: int, block: int
) -> tuple[Slots, Array]:
    """Slots sorted by expert, each expert's share padded to whole blocks, for choices in bool `kept_NxA`.

    Returns:
      The slots, and the expert of each block: int32[M / block].
    """
    # The choices that are not kept go to one more expert, which has no slots.
    expert_P = jnp.where(kept_NxA, expert_NxA, experts).reshape(-1)
    place_P = earlier_equal(expert_P[None], experts)[0]
    counts_E = jnp.sum(expert_P[:, None] == jnp.arange(experts), axis=0, dtype=jnp.int32)
    blocks_E = (counts_E + block - 1) // block
    up_to = np.tri(experts, dtype=np.int32)  # a cumulative sum, cheaper to compile
    ends_E = jnp.sum(up_to * blocks_E, axis=1)
    num_blocks = grouped_rows(expert_NxA.size, experts, block) // block
    starts = jnp.append((ends_E - blocks_E) * block, num_blocks * block)
    slot_P = starts[expert_P] + place_P
    ended = ends_E[None, :] <= jnp.arange(num_blocks)[:, None]
    expert_of_block = jnp.minimum(jnp.sum(ended, axis=1), experts - 1).astype(jnp.int32)
    slot_of_NxA = slot_P.reshape(expert_NxA.shape).astype(jnp.int32)
    return _slots(slot_of_NxA, num_blocks * block), expert_of_block


@with_gradient(gradients.to_slots_forward, gradients.to_slots_backward)
def to_slots(x_NxD: Array, slots: Slots) -> Array:
    """float[N, D] -> float[M, D]: each slot holds its token, empty slots hold zeros."""
    return rows_at(x_NxD, slots.choice_of_M // slots.slot_of_NxA.shape[1])


@with_gradient(gradients.from_slots_forward, gradients.from_slots_backward, value_of_forward=True)
def from_slots(y_MxD: Array, gate_NxA: Array, slots: Slots) -> Array:
    """float[M, D], float[N, A] -> float[N, D]: gate-weighted sum of each token's slots."""
    y_NxAxD = rows_at(y_MxD, slots.slot_of_NxA)
    return jnp.sum(gate_NxA.astype(y_MxD.dtype)[:, :, None] * y_NxAxD, axis=1)


@with_gradient(gradients.grouped_dot_forward, gradients.grouped_dot_backward)
def grouped_dot(x_MxD: Array, w_ExDxF: Array, expert_of_block: Array) -> Array:
    """Each block of rows times the matrix of its expert: float[M, D] -> float[M, F].

    A loop over blocks, for CPUs: XLA's own `ragged_dot` there multiplies every row by every expert.
    """
    x_blocks = x_MxD.reshape(expert_of_block.shape[0], -1, x_MxD.shape[-1])

    def product(block_and_expert: tuple[Array, Array]) -> Array:
        x, expert = block_and_expert
        return jnp.dot(x, w_ExDxF[expert])

    return jax.lax.map(product, (x_blocks, expert_of_block)).reshape(x_MxD.shape[0], -1)
