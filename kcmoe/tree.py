# SPDX-License-Identifier: Apache-2.0
"""Parameter and state trees: their paths, flat and nested forms, shapes, bytes and logical axes.

A parameter's name is Flaxformer's ("encoder/layers_3/mlp/wo/kernel"). A state is T5X's tree, flat:
path -> leaf with `target/<parameter>`, `state/param_states/<parameter>/<name>` and `state/step`
(t5x@cc342d4:t5x/train_state.py). Both are a public interface, and this file is the only one that
spells the prefixes. It knows no model, no optimizer and no file format. A leaf may be anything: an
array, its shape, its sharding, what is wrong with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

PARAMETERS = "target/"
"""What the paths of parameters begin with; as a pattern of `checkpoint.restore`, only they."""
OPTIMIZER = "state/param_states/"
"""What the paths of the optimizer's state begin with."""
STEP = "state/step"
"""The path of the step."""
AVERAGE, AVERAGED = "ema", "ema_taken"
"""Slots of a parameter's moving average: float32 of its shape, and over how many steps, [1]."""


class ShapeDtype(NamedTuple):
    """Shape and dtype of one leaf."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes when uncompressed."""
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"


def shape_dtype(array: Any) -> ShapeDtype:
    """Returns shape and dtype of anything that has both (NumPy, JAX, `jax.ShapeDtypeStruct`)."""
    return ShapeDtype(tuple(int(size) for size in array.shape), np.dtype(array.dtype))


def total_bytes(leaves: Iterable[Any]) -> int:
    """Returns the uncompressed bytes of all leaves together; each has a shape and a dtype."""
    return sum(shape_dtype(leaf).nbytes for leaf in leaves)


def total_values(leaves: Iterable[Any]) -> int:
    """Returns the number of values of all leaves together; each has a shape."""
    return sum(math.prod(leaf.shape) for leaf in leaves)


def nested(flat: Mapping[str, T]) -> dict[str, Any]:
    """Returns {"a/b": x} as {"a": {"b": x}}, the form that Flax modules and T5X's old index take."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def flattened(
    tree: Mapping[str, Any],
    is_leaf: Callable[[Mapping[str, Any]], bool] | None = None,
    prefix: str = "",
) -> dict[str, Any]:
    """Returns {"a": {"b": x}} as {"a/b": x}; empty mappings vanish, as they hold nothing.

    `is_leaf` tells which mappings are leaves (none if not given). Raises ValueError for a name
    that is not text.
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if not isinstance(name, str):
            raise ValueError(f"a name in the tree is not text: {name!r}")
        if isinstance(value, Mapping) and not (is_leaf and is_leaf(value)):
            flat.update(flattened(value, is_leaf, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = value
    return flat


_ROOTS = ("target", "state", "flax_mutables")


def check_paths(paths: Iterable[str]) -> None:
    """Raises ValueError, naming the first, for paths that T5X's tree does not have or files cannot.

    Checkpoints name folders and keys after paths, with dots for slashes, so no path may lead out of its
    folder, hide in it, or share the name of another.
    """
    dotted: dict[str, str] = {}
    for path in sorted(paths):
        root, *names = path.split("/")
        if root not in _ROOTS or not names:
            raise ValueError(f"{path!r} does not begin with {PARAMETERS} or state/")
        if not all(name and not name.startswith(".") and name.isprintable() for name in names):
            raise ValueError(
                f"{path!r} has a part that is empty, begins with a dot or cannot be printed"
            )
        other = dotted.setdefault(path.replace("/", "."), path)
        if other != path:
            raise ValueError(f"{other!r} and {path!r} would have the same name")
    for path in dotted.values():
        parts = path.split("/")
        for length in range(1, len(parts)):
            if dotted.get(".".join(parts[:length])) == "/".join(parts[:length]):
                raise ValueError(
                    f"{'/'.join(parts[:length])!r} cannot hold values and {path!r} as well"
                )


def is_parameter(path: str) -> bool:
    """Tells whether a leaf of a state is a parameter."""
    return path.startswith(PARAMETERS)


def is_optimizer(path: str) -> bool:
    """Tells whether a leaf of a state belongs to the optimizer."""
    return path.startswith(OPTIMIZER)


def parameter_of(path: str) -> str | None:
    """Returns the name of the parameter that a leaf is, or belongs to; None for the step."""
    if is_parameter(path):
        return path.removeprefix(PARAMETERS)
    if is_optimizer(path):
        return path.removeprefix(OPTIMIZER).rpartition("/")[0]
    return None


def slot(parameter: str, name: str) -> str:
    """Returns the path of what the optimizer keeps for a parameter under `name`."""
    return f"{OPTIMIZER}{parameter}/{name}"


def is_average(path: str) -> bool:
    """Tells whether a leaf of a state belongs to the moving average of the weights."""
    return is_optimizer(path) and path.rpartition("/")[2] in (AVERAGE, AVERAGED)


def as_state(params: Mapping[str, T]) -> dict[str, T]:
    """Returns the parameters (name -> leaf) under the paths they have in a state."""
    return {PARAMETERS + name: leaf for name, leaf in params.items()}


def parameters(state: Mapping[str, T]) -> dict[str, T]:
    """Returns the parameters of a flat state: name -> leaf. The opposite of `as_state`."""
    return {
        path.removeprefix(PARAMETERS): leaf for path, leaf in state.items() if is_parameter(path)
    }


def joined(
    step: T, params: Mapping[str, T], param_states: Mapping[str, Mapping[str, T]]
) -> dict[str, T]:
    """Returns the flat state of a step, parameters (name -> leaf) and optimizer state.

    `param_states`: name of a parameter -> {name: leaf}, as the optimizer keeps them for it.
    """
    state = {**as_state(params), STEP: step}
    for parameter, leaves in param_states.items():
        state |= {slot(parameter, name): leaf for name, leaf in leaves.items()}
    return state


def split(state: Mapping[str, T]) -> tuple[T, dict[str, T], dict[str, dict[str, T]]]:
    """Returns step, parameters and optimizer state of a flat state; the opposite of `joined`.

    A parameter without optimizer state gets {}. Raises KeyError if the step is missing.
    """
    params = parameters(state)
    param_states: dict[str, dict[str, T]] = {parameter: {} for parameter in params}
    for path, leaf in state.items():
        if is_optimizer(path):
            parameter, _, name = path.removeprefix(OPTIMIZER).rpartition("/")
            param_states.setdefault(parameter, {})[name] = leaf
    return state[STEP], params, param_states


# Names are Flaxformer's; the full-size tree of T5X + Flaxformer guards them in a test.
_AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"token_embedder/embedding", ("vocab", "embed")),
    (r".*/logits_dense/kernel", ("embed", "vocab")),
    (r".*/relpos_bias/rel_embedding", ("heads", "relpos_buckets")),
    (r".*attention/(query|key|value)/kernel", ("embed", "joined_kv")),
    (r".*attention/out/kernel", ("joined_kv", "embed")),
    (r".*/expert/wi_[01]/kernel", ("expert", "mlp_embed", "expert_mlp")),
    (r".*/expert/wo/kernel", ("expert", "expert_mlp", "mlp_embed")),
    (r".*mlp/wi_[01]/kernel", ("mlp_embed", "mlp")),
    (r".*mlp/wo/kernel", ("mlp", "mlp_embed")),
    (r".*/router/router_weights/w/kernel", ("embed", "unmodeled")),
    (r".*norm/scale", ("embed",)),
)


def logical_axes(parameter: str) -> tuple[str, ...]:
    """Returns the axes of a parameter by its name, e.g. ("expert", "mlp_embed", "expert_mlp").

    Sharding and Adafactor's factoring are decided on them. Raises KeyError for a name that is no
    parameter of this model.
    """
    for pattern, axes in _AXES:
        if re.fullmatch(pattern, parameter):
            return axes
    raise KeyError(f"no logical axes are known for parameter {parameter}")
