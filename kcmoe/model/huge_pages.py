# SPDX-License-Identifier: Apache-2.0
"""Asks glibc for huge pages, by starting the program again with its settings in the environment.

XLA on CPUs allocates the arrays of a step anew each time, and the kernel hands them out 4 KiB at a time: a
fifth of a training step at size tiny goes into that (benchmarks/README.md). glibc reads its setting once,
before Python begins, hence the second start; it costs 20 ms. Only where the kernel offers huge pages to
those who ask, and never over a GLIBC_TUNABLES of the user's own. KCMOE_HUGE_PAGES=0 turns it off.

Training asks for one thing more: that freed scraps join the gap beside them (`kcmoe.model.kept_memory`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb=1"
NO_SCRAPS = "glibc.malloc.tcache_count=0"  # freed scraps stay with a thread otherwise
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment(
    env: Mapping[str, str] = os.environ, *, training: bool = False
) -> dict[str, str] | None:
    """`env` with the settings for this kind of program, or None where nothing would change."""
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in env:
        return None
    tunables = []
    if env.get("KCMOE_HUGE_PAGES") != "0" and _offered():
        tunables.append(TUNABLE)
    if training and env.get("KCMOE_KEEP_MEMORY") != "0":
        tunables.append(NO_SCRAPS)
    return {**env, "GLIBC_TUNABLES": ":".join(tunables)} if tunables else None


def environments(*, training: bool = False) -> tuple[dict[str, str], dict[str, str]]:
    """The environment as it was before `kcmoe bench` asked for huge pages, and with the settings."""
    plain = {k: v for k, v in os.environ.items() if (k, v) != ("GLIBC_TUNABLES", TUNABLE)}
    return plain, environment(plain, training=training) or plain


def restart_with_huge_pages(*, training: bool = False) -> None:
    """Replaces this process by itself with the settings, or returns where that would change nothing."""
    changed = environment(training=training)
    if changed is not None:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)


def _offered() -> bool:
    try:
        return "[madvise]" in _KERNEL.read_text()
    except OSError:
        return False
