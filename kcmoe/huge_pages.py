# SPDX-License-Identifier: Apache-2.0
"""Asks glibc for huge pages, by starting the program again with the setting in its environment.

XLA on CPUs allocates the arrays of a step anew each time, and the kernel hands them out 4 KiB at a time: a
fifth of a training step at size tiny goes into that (benchmarks/README.md). glibc reads its setting once,
before Python begins, hence the second start; it costs 20 ms. Only where the kernel offers huge pages to
those who ask, and never over a GLIBC_TUNABLES of the user's own. KCMOE_HUGE_PAGES=0 turns it off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb=1"
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment(env: Mapping[str, str] = os.environ) -> dict[str, str] | None:
    """`env` with huge pages asked for, or None where nothing would change."""
    if not sys.platform.startswith("linux") or env.get("KCMOE_HUGE_PAGES") == "0":
        return None
    if "GLIBC_TUNABLES" in env:
        return None
    try:
        offered = "[madvise]" in _KERNEL.read_text()
    except OSError:
        return None
    return {**env, "GLIBC_TUNABLES": TUNABLE} if offered else None


def environments() -> tuple[dict[str, str], dict[str, str]]:
    """The environment as it was before `kcmoe` asked for huge pages, and with them where they are offered."""
    plain = {k: v for k, v in os.environ.items() if (k, v) != ("GLIBC_TUNABLES", TUNABLE)}
    return plain, environment(plain) or plain


def restart_with_huge_pages() -> None:
    """Replaces this process by itself with huge pages, or returns where that would change nothing."""
    changed = environment()
    if changed is not None:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)
