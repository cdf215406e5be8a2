# SPDX-License-Identifier: Apache-2.0
"""Memory of a training step's temporary arrays: in huge pages, and kept from one step to the next.

XLA on CPUs allocates the arrays of a step anew each time. glibc fetches them from the kernel, which clears
them 4 KiB at a time, and returns them when the step ends. Two settings of glibc help, both only on Linux:

Huge pages (KCMOE_HUGE_PAGES=0 turns them off): at size tiny a quarter of a step went into small pages. glibc
reads the setting once, before Python begins, so the program starts itself again with the setting in its
environment, which costs 20 ms. Only where the kernel offers huge pages to those who ask, and never over a
GLIBC_TUNABLES of the user's own.

Kept memory (KCMOE_KEEP_MEMORY=0 turns it off): in a virtual machine the host may take freed memory back, and
every other step of size mini then took half as long again. Instead, large arrays come from the heap as well,
and the heap does not shrink.

benchmarks/README.md has the measurements, under "What was tried for the training step at tiny".
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcmoe.model import current_platform

if TYPE_CHECKING:
    import jax

HUGE_PAGES = "glibc.malloc.hugetlb=1"
NO_SCRAPS = (
    "glibc.malloc.tcache_count=0"  # otherwise freed scraps stay with a thread, see `_KeptStep`
)
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# mallopt(3), malloc.h
_M_MXFAST, _M_TRIM_THRESHOLD, _M_MMAP_MAX = 1, -1, -4


def environment(
    env: Mapping[str, str] = os.environ, *, training: bool = False
) -> dict[str, str] | None:
    """`env` with the settings for this kind of program, or None where nothing would change."""
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in env:
        return None
    tunables = []
    if env.get("KCMOE_HUGE_PAGES") != "0" and _kernel_offers_huge_pages():
        tunables.append(HUGE_PAGES)
    if training and env.get("KCMOE_KEEP_MEMORY") != "0":
        tunables.append(NO_SCRAPS)
    return {**env, "GLIBC_TUNABLES": ":".join(tunables)} if tunables else None


def environments(*, training: bool = False) -> tuple[dict[str, str], dict[str, str]]:
    """The environment as it was before `kcmoe bench` asked for huge pages, and with the settings."""
    plain = {k: v for k, v in os.environ.items() if (k, v) != ("GLIBC_TUNABLES", HUGE_PAGES)}
    return plain, environment(plain, training=training) or plain


def restart_with_huge_pages(*, training: bool = False) -> None:
    """Replaces this process by itself with the settings, or returns where that would change nothing."""
    changed = environment(training=training)
    if changed is not None:
        sys.stdout.flush()
        with contextlib.suppress(
            OSError, ValueError
        ):  # a Python that cannot be run twice computes, too
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)


def _kernel_offers_huge_pages() -> bool:
    """Whether the kernel gives huge pages to programs that ask, and to no others."""
    try:
        return "[madvise]" in _KERNEL.read_text()
    except OSError:
        return False


def compute_in_turn() -> None:
    """Makes JAX start a step when the one before has ended. To be called before JAX is first used.

    JAX would otherwise allocate the arrays of a step while those of the step before are still there. Where
    memory is fetched anew that costs addresses only; where it is kept it costs the memory twice.
    """
    if os.environ.get("KCMOE_KEEP_MEMORY") != "0":
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep(step: jax.stages.Compiled) -> Callable[..., Any]:
    """The compiled `step` as a function that keeps its memory.

    Returns `step` itself if this is no CPU with glibc, or if `compute_in_turn` was not called before.
    """
    libc = _keeping_libc()
    return step if libc is None else _KeptStep(step, libc)


def give_back() -> None:
    """Gives kept memory that is free back to the kernel: for work between steps that needs its own."""
    libc = _keeping_libc()
    if libc is not None:
        libc.malloc_trim(0)


def trim() -> None:
    """Gives memory that was freed, and that glibc holds on to, back to the kernel; in any program."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


class _KeptStep:
    """Runs a step, and takes care that its memory is kept once, not twice.

    Something small may come to lie right behind the large arrays and stay when they are freed: mostly the
    scrap that alignment left over, if glibc keeps it for its thread (`NO_SCRAPS`). The gap is then too small
    for the arrays, and they move up while every byte of the old place is still held. So after each step the
    heap is asked where they would lie next: if that is elsewhere, all free memory goes back to the kernel
    first.
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
    import jax

    if current_platform() != "cpu" or jax.config.read("jax_cpu_enable_async_dispatch"):
        return None
    return _glibc()


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl has neither the cost nor the settings
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc
