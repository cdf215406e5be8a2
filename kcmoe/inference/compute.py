# SPDX-License-Identifier: Apache-2.0
"""The functions of a model that are compiled, and who runs them: JAX at once, or programs kept on disk.

`Jitted` is the plain way, on any device. The `Programs` of programs.py are for CPUs, and compute the same
numbers.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from kcmoe.model.encoder_decoder import EncoderDecoder

# name -> where the jitted function is: (model, params, *arrays, **settings) -> array or tuple of arrays.
FUNCTIONS = {
    "embed": "kcmoe.inference.embed.embed",
    "places": "kcmoe.inference.routers.expert_places",
    "rank": "kcmoe.inference.score.label_log_likelihoods",
    "routers": "kcmoe.inference.routers.router_logits",
    "score": "kcmoe.inference.score.target_scores",
    "search": "kcmoe.inference.decode.beam_search",
}


Arrays = Sequence[np.ndarray]


class Call(NamedTuple):
    """A function on arrays of some shapes: what is compiled at once.

    name: of `FUNCTIONS`. shapes: (shape, dtype) per array. settings: static arguments, sorted by name.
    """

    name: str
    shapes: tuple[tuple[tuple[int, ...], str], ...]
    settings: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, name: str, arrays: Iterable[np.ndarray], settings: Mapping[str, Any]) -> Call:
        """The call of `name` with these arrays."""
        shapes = tuple((array.shape, array.dtype.name) for array in arrays)
        return cls(name, shapes, tuple(sorted(settings.items())))


class Compute(Protocol):
    """Who runs the functions."""

    def __call__(self, name: str, *arrays: np.ndarray, **settings: Any) -> Any:
        """Begins the computation; what comes back is for `fetched`."""

    def prepare(self, calls: Iterable[Call]) -> None:
        """Makes calls ready that will come, where that saves time."""

    def few(self, call: Call, rest: Arrays, candidates: Sequence[int], patience: int | None) -> int:
        """Rows that may be computed in place of all those of `call`, with the same bits for each.

        Args:
          call: a program of many rows.
          rest: the last of its arrays, which have no row for each sequence.
          candidates: numbers of rows to try, in this order.
          patience: how often this must be asked before a program is compiled for it, which takes seconds;
            None neither compiles nor reads anything.

        Returns:
          One of the candidates; 0 if none is known to do.
        """

    def forget(self) -> None:
        """Drops all programs from memory; they are made ready again when they are called."""


def function(name: str) -> Any:
    """The jitted function of this name."""
    module, _, attribute = FUNCTIONS[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def fetched(result: Any) -> Any:
    """A result as NumPy arrays, waiting for it."""
    if isinstance(result, tuple | list):
        return tuple(np.asarray(each) for each in result)
    return np.asarray(result)


@dataclasses.dataclass(frozen=True)
class Jitted:
    """A module and its parameters, run through `jax.jit`."""

    model: EncoderDecoder
    params: Mapping[str, Any]

    def __call__(self, name: str, *arrays: np.ndarray, **settings: Any) -> Any:
        """See `Compute`."""
        return function(name)(self.model, self.params, *arrays, **settings)

    def prepare(self, calls: Iterable[Call]) -> None:
        """Nothing: JAX compiles when it is called."""

    def few(self, *_: Any, **__: Any) -> int:
        """None: to know whether bits are the same, programs must be the same ones tomorrow."""
        return 0

    def forget(self) -> None:
        """See `Compute`."""
        import jax

        jax.clear_caches()
