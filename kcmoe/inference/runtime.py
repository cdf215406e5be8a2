# SPDX-License-Identifier: Apache-2.0
"""Running compiled programs on this CPU through jaxlib alone, so that answering needs no import of JAX.

Importing JAX and Flax takes longer than all else that stands between a line and its answer. What is done
here with jaxlib is what JAX does with it: make a client, hand it arrays, run an executable. These are
jaxlib's inner names, which may change with a version, so `Runtime.of` gives None wherever something is not as
expected, and `compute` then takes JAX.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kcmoe.inference.patience import ctrl_c_waits

_log = logging.getLogger(__name__)
_ALIGNED_BYTES = 64  # XLA reads an array where it lies if it begins at a multiple of this


class _Aval:
    """What jaxlib asks of an array's type."""

    weak_type = False

    def __init__(self, shape: Sequence[int], dtype: np.dtype[Any]):
        self.shape, self.dtype, self.ndim = tuple(shape), dtype, len(shape)


class Runtime:
    """jaxlib's client for one CPU device. May be used from several threads."""

    def __init__(self) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # as JAX does
        with ctrl_c_waits():  # jaxlib crashes where it is interrupted while it is imported
            from jaxlib import _jax, xla_client

        self._jax = _jax
        make: Any = xla_client.make_cpu_client
        self._client = make()
        self._device = self._client.devices()[0]
        self._devices = xla_client.DeviceList((self._device,))
        replicated = xla_client.HloSharding.replicate()

        class OneDevice(_jax.SingleDeviceSharding):
            memory_kind = "device"

            def _to_xla_hlo_sharding(self, dimensions: int) -> Any:
                del dimensions
                return replicated

        self._sharding = OneDevice(self._device)

    def put(self, array: np.ndarray) -> Any:
        """The array for programs; it must not change as long as they may read it."""
        aval = _Aval(array.shape, array.dtype)
        return self._jax.batched_device_put(
            aval, self._sharding, [array], [self._device], enable_x64=False
        )

    def load(
        self, serialized: bytes, outputs: Sequence[tuple[Sequence[int], str]]
    ) -> Callable[[Sequence[Any]], list[Any]]:
        """A serialized executable as a function: arrays from `put` -> arrays that NumPy can read.

        Args:
          serialized: from `serialize` of an executable of this jaxlib and this kind of machine.
          outputs: shape and dtype of each result.
        """
        executable = self._client.deserialize_executable(
            serialized, executable_devices=self._devices
        )
        handlers = [
            self._jax.array_result_handler(
                _Aval(shape, np.dtype(dtype)), self._sharding, True, True
            )
            for shape, dtype in outputs
        ]

        def run(arguments: Sequence[Any]) -> list[Any]:
            return list(executable.execute_sharded(list(arguments)).consume_with_handlers(handlers))

        return run

    @staticmethod
    def of() -> Runtime | None:
        """The runtime of this process, or None where JAX computes on something else or jaxlib differs."""
        return _runtime() if computes_on_cpu() else None


_once = threading.Lock()


def _runtime() -> Runtime | None:
    with _once:
        return _made()


@functools.cache
def _made() -> Runtime | None:
    try:
        runtime = Runtime()
        if not np.array_equal(np.asarray(runtime.put(np.arange(3, dtype=np.int32))), [0, 1, 2]):
            raise ValueError("an array came back changed")
    except Exception as error:  # another jaxlib: whatever it says, JAX itself can still be used
        _log.debug("jaxlib alone cannot be used: %r", error)
        return None
    return runtime


def computes_on_cpu() -> bool:
    """Whether JAX would choose the CPU, told without importing it: it was asked to, or finds nothing else."""
    chosen = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME")
    if chosen:
        return chosen == "cpu"
    return not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """An array, not yet filled, that `put` does not copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + _ALIGNED_BYTES, np.uint8)
    start = -raw.ctypes.data % _ALIGNED_BYTES
    return raw[start : start + size].view(dtype).reshape(tuple(shape))
