# SPDX-License-Identifier: Apache-2.0
"""The parameters of a model with fewer experts, from those of the whole one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from kcmoe.tree import ShapeDtype

_LAYER = re.compile(r"((?:encoder|decoder)/layers_\d+)/(.*)")
_EXTRA = {"extra_mlp/": "mlp/", "pre_extra_mlp_layer_norm/": "pre_mlp_layer_norm/"}


def kept(path: str, experts: Mapping[str, np.ndarray]) -> str | None:
    """The name that a parameter has afterwards, None where it goes.

    Args:
      path: its name in the whole model.
      experts: sparse layer -> the experts that stay. Where none stay the MoE block goes with its norm, and
        the MLP behind it becomes the layer's only one, as in a dense model.
    """
    found = _LAYER.fullmatch(path)
    if found is None or found[1] not in experts or len(experts[found[1]]):
        return path
    layer, rest = found.groups()
    if rest.startswith(("mlp/", "pre_mlp_layer_norm/")):
        return None
    for old, new in _EXTRA.items():
        if rest.startswith(old):
            return f"{layer}/{new}{rest.removeprefix(old)}"
    return path


def cut(path: str, values: np.ndarray, experts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The values of a parameter that stays: of experts [E, …] the rows, of a router [D, E] the columns."""
    found = _LAYER.fullmatch(path)
    if found is None or found[1] not in experts or not len(experts[found[1]]):
        return values
    chosen = experts[found[1]]
    if "mlp/expert/" in path:
        return values[chosen]
    return values[:, chosen] if "mlp/router/" in path else values


def after(
    tree: Mapping[str, ShapeDtype], experts: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, str, ShapeDtype]]:
    """(name before, name afterwards, shape and dtype afterwards) of every parameter that stays."""
    for path, leaf in tree.items():
        name = kept(path, experts)
        if name is not None:
            # Of a broadcast view nothing is allocated; indexing it tells the shape.
            probe = np.broadcast_to(np.zeros((), np.int8), leaf.shape)
            yield path, name, ShapeDtype(cut(path, probe, experts).shape, leaf.dtype)
