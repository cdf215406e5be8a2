# SPDX-License-Identifier: Apache-2.0
"""Keeps the memory of a training step's temporary arrays from one step to the next, on CPUs with glibc.

XLA frees those arrays when a step ends, glibc returns them to the kernel, and the kernel clears the same
memory for the next step. In a virtual machine the host may take it back in between: there every other step
of size mini took half as long again (benchmarks/README.md). Instead, large arrays come from the heap as
well, and the heap does not shrink.

KCMOE_KEEP_MEMORY=0 turns it off.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

import jax

# mallopt(3), malloc.h
_M_MXFAST, _M_TRIM_THRESHOLD, _M_MMAP_MAX = 1, -1, -4


def compute_in_turn() -> None:
    """Makes JAX start a step when the one before has ended. To be called before JAX is first used.

    Ahead of time it would allocate the arrays of one step while those of the step before are still there: no
    more than an address while memory is fetched anew, but twice the memory where it is kept.
    """
    if os.environ.get("KCMOE_KEEP_MEMORY") != "0":
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep(step: jax.stages.Compiled) -> Callable[..., Any]:
    """The compiled `step` as a function that keeps its memory; `step` itself if this is no CPU with glibc, or
    without `compute_in_turn` before."""
    libc = _keeping_libc()
    return step if libc is None else _KeptStep(step, libc)


def give_back() -> None:
    """Gives kept memory that is free back to the kernel: for work between steps that needs its own."""
    libc = _keeping_libc()
    if libc is not None:
        libc.malloc_trim(0)


class _KeptStep:
    """Runs a step, and sees to it that its memory is kept once, not twice.

    Something small that comes to lie right behind the large arrays, and stays when they are freed, leaves a
    gap in which they do not fit any more: mostly the scrap that alignment left over, if glibc keeps it for
    its thread (`huge_pages.NO_SCRAPS`). They would move up with every byte of the old place still held. So
    after each step the heap is asked where they would lie next: if that is elsewhere, all free memory goes
    back to the kernel first.
    """

    def __init__(self, step: jax.stages.Compiled, libc: ctypes.CDLL):
        self._step, self._libc = step, libc
        # What XLA asks for, and what glibc adds to it for alignment.
        sizes: Any = step.memory_analysis()
        self._size = sizes.temp_size_in_bytes + 4096
        libc.mallopt(_M_MXFAST, 0)  # freed scraps join the gap next to them
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
        libc.mallopt(_M_MMAP_MAX, 0)
        self._place = self._next_place()

    def __call__(self, *args: Any) -> Any:
        result = self._step(*args)
        place = self._next_place()
        if place != self._place:
            self._libc.malloc_trim(0)
            self._place = place
        return result

    def _next_place(self) -> int | None:
        """Address of the smallest gap that the arrays fit in; nothing in it is touched."""
        place = self._libc.malloc(self._size)
        self._libc.free(place)
        return place


def _keeping_libc() -> ctypes.CDLL | None:
    """The C library, where it is glibc and the arrays of steps computed in turn come from it."""
    if jax.default_backend() != "cpu" or jax.config.read("jax_cpu_enable_async_dispatch"):
        return None
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl has neither the cost nor the settings
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc
