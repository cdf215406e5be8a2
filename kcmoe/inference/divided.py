# SPDX-License-Identifier: Apache-2.0
"""Ranking and generating on many hosts: each computes every N-th sequence, and all get all results.

A sequence's numbers do not depend on what is computed beside it (`batching`), so the results are those of one
host, bit for bit. Each host computes on one device of its own, with all parameters there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from kcmoe.hosts.group import ALONE, Hosts
from kcmoe.inference.batching import Advance, BatchedModel, Ids


@dataclasses.dataclass(frozen=True)
class DividedModel(BatchedModel):
    """A `BatchedModel` on all `hosts`, which call it with the same sequences."""

    hosts: Hosts = ALONE

    def rank(self, inputs: Ids, labels: Ids, advance: Advance | None = None) -> np.ndarray:
        """See `BatchedModel.rank`."""
        own = super().rank(self._own(inputs), labels, self._paced(advance))
        return self._all(own, len(inputs))

    def generate(
        self,
        inputs: Ids,
        max_tokens: int,
        *,
        beam_size: int = 1,
        alpha: float = 0.6,
        advance: Advance | None = None,
    ) -> np.ndarray:
        """See `BatchedModel.generate`."""
        paced = self._paced(advance)
        own = super().generate(
            self._own(inputs), max_tokens, beam_size=beam_size, alpha=alpha, advance=paced
        )
        return self._all(own, len(inputs))

    def _own(self, sequences: Ids) -> Ids:
        return sequences[self.hosts.index :: self.hosts.count]

    def _paced(self, advance: Advance | None) -> Advance | None:
        """Counts the lines of the other hosts as done with one's own."""
        if advance is None:
            return None
        return lambda lines: advance(lines * self.hosts.count)

    def _all(self, own: np.ndarray, count: int) -> np.ndarray:
        """The rows of all hosts [N, …], in order."""
        if self.hosts.count == 1:
            return own
        from jax.experimental import multihost_utils

        rows = -(-count // self.hosts.count)  # of the host that has most
        filled = np.zeros((rows, *own.shape[1:]), own.dtype)
        filled[: len(own)] = own
        self.hosts.wait()  # on CPUs the first message waits for 30 s only
        every: Any = multihost_utils.process_allgather(filled)
        return np.asarray(every).swapaxes(0, 1).reshape(-1, *own.shape[1:])[:count]


@functools.lru_cache(maxsize=1)
def _placing(sharding: Any) -> Any:
    import jax

    return jax.jit(lambda x: x, out_shardings=sharding)


def own_copy(params: Mapping[str, Any], hosts: Hosts) -> Mapping[str, Any]:
    """The parameters whole on this host's first device, from arrays over the devices of all hosts.

    Every host calls this. It goes leaf by leaf, so that the copies on other devices live shortly. Alone, the
    parameters stay as they are.
    """
    if hosts.count == 1:
        return params
    from jax.sharding import NamedSharding, PartitionSpec

    copies = {}
    for path, array in params.items():
        if not array.is_fully_addressable and not array.is_fully_replicated:
            everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
            array = _placing(everywhere)(array)
        copies[path] = array if array.is_fully_addressable else array.addressable_data(0)
    return copies
