# SPDX-License-Identifier: Apache-2.0
"""Counts what a training step keeps between its forward and its backward pass, from JAX's own trace.

`jax.vjp` hands the backward pass a set of arrays; tracing it on shapes alone lists them. XLA for CPUs
keeps exactly these. XLA for TPUs and GPUs computes cheap ones again where they are needed (a sum, a
conversion to bfloat16) and keeps what they were made of, if that is smaller; `fused` counts that way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend.core import Jaxpr, Var

# What XLA repeats rather than stores.
_CHEAP = frozenset(
    """
    add sub mul neg abs max min square integer_pow sign convert_element_type copy stop_gradient
    reshape transpose squeeze expand_dims broadcast_in_dim slice pad concatenate iota
    select_n eq ne lt le gt ge and or not xor
    """.split()  # noqa: SIM905
)


def kept_bytes(loss: Callable[..., Any], params: Any, *arguments: Any, fused: bool) -> int:
    """Bytes that the gradient of `loss` keeps, beyond its arguments.

    Args:
      loss: (params, *arguments) -> (loss, metrics).
      params: tree of shapes, differentiated.
      *arguments: further shapes.
      fused: count as XLA for accelerators would keep them.
    """

    def forward(params: Any, *arguments: Any) -> Any:
        return jax.tree.leaves(jax.vjp(lambda p: loss(p, *arguments), params, has_aux=True)[1])

    with (
        jax.disable_jit()
    ):  # traces into functions that are jitted, so that every operation is seen
        jaxpr = jax.make_jaxpr(forward)(params, *arguments).jaxpr
    given = set(jaxpr.invars)
    asked = dict.fromkeys(v for v in jaxpr.outvars if isinstance(v, Var) and v not in given)
    kept = _fused(jaxpr, asked) if fused else asked
    return sum(_size(variable) for variable in kept)


def _fused(jaxpr: Jaxpr, asked: Iterable[Var]) -> set[Var]:
    """Returns `asked`, with each array replaced by what it is cheaply made of wherever that is smaller."""
    made_by = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
    order = {out: i for i, equation in enumerate(jaxpr.eqns) for out in equation.outvars}
    kept: set[Var] = set()
    for variable in sorted(asked, key=lambda v: order.get(v, -1)):
        roots: set[Var] = set()
        seen: set[Var] = set()
        todo = [variable]
        while todo:
            one = todo.pop()
            is_argument = one not in made_by  # or a constant
            if one in seen or one in kept or is_argument:
                continue
            seen.add(one)
            equation = made_by[one]
            if equation.primitive.name in _CHEAP:
                todo += [v for v in equation.invars if isinstance(v, Var)]
            else:
                roots.add(one)
        cheaper = sum(_size(root) for root in roots) <= _size(variable)
        kept |= roots if cheaper else {variable}
    return kept


def _size(variable: Var) -> int:
    """Bytes; a random key has a dtype without `itemsize`."""
    aval: Any = variable.aval
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 8)
