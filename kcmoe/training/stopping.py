# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and Ctrl-C ask a run to stop after the step it is in; a second one stops it at once.

Python's handlers wait until XLA returns, which may take minutes. A thread need not wait: it prints a line for
the first signal and gives both signals back their default effect, so that the second one kills the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kcmoe.hosts.group import Hosts

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_TWICE_S = 0.2  # a launcher may pass on the Ctrl-C that the whole process group gets anyway


class StopRequest:
    """A context in which the first SIGTERM or SIGINT sets `name`; afterwards signals act as before."""

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._heard, self._told = os.pipe()  # Python writes the number of each signal to it
        os.set_blocking(self._told, False)
        self._told_before = signal.set_wakeup_fd(self._told)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name

    def _answer(self) -> None:
        from tqdm import tqdm

        while number := os.read(self._heard, 1):
            if number[0] not in _SIGNALS:
                continue
            line = f"{signal.Signals(number[0]).name}: stopping after this step and saving"
            tqdm.write(f"{line}; again to stop at once", file=sys.stderr)
            time.sleep(_TWICE_S)
            libc = ctypes.CDLL(None)  # Python's own `signal` is for the main thread
            libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
            for each in _SIGNALS:
                libc.signal(each, None)  # SIG_DFL
            return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._told_before)
        os.close(self._told)
        self._thread.join()
        os.close(self._heard)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return bool(self.name)


class StopVote:
    """Whether any host was asked to stop: all hosts hear the same answer after the same step.

    The votes are one number per device, and the devices tell their maximum. It is read one step later, while
    the next step is computed, so that asking costs no waiting. Alone, there is nobody to ask.
    """

    def __init__(self, stop: StopRequest, hosts: Hosts, mesh: Mesh):
        self._stop, self._hosts = stop, hosts
        self._cast: jax.Array | None = None
        if hosts.count > 1:
            every = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            self._votes = lambda vote: jax.make_array_from_callback(
                (mesh.size,), every, lambda at: np.full(mesh.size, vote, np.int32)[at]
            )
            self._none = self._votes(0)
            self._highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def ask(self) -> str:
        """The signal that stops the run, "" while none does; to be called once per step on every host."""
        if self._hosts.count == 1:
            return self._stop.name
        votes = self._none
        if self._stop:  # the number of the signal, and who got it
            votes = self._votes(64 * (1 + self._hosts.index) + getattr(signal, self._stop.name))
        before, self._cast = self._cast, self._highest(votes)
        winner = 0 if before is None else int(before)
        if not winner:
            return ""
        name, index = signal.Signals(winner % 64).name, winner // 64 - 1
        return name if index == self._hosts.index else f"{name} at {self._hosts.names[index]}"
