# SPDX-License-Identifier: Apache-2.0
"""JAX's persistent compilation cache, on by default: the second start of a run compiles nothing."""

from __future__ import annotations

import os
from pathlib import Path

from kcmoe.io import given
from kcmoe.io.kept import Kept


def folder() -> Path | None:
    """KCMOE_CACHE_DIR (empty turns the cache off), else $XDG_CACHE_HOME/kcmoe, else ~/.cache/kcmoe."""
    chosen = os.environ.get("KCMOE_CACHE_DIR")
    if chosen == "":
        return None
    if chosen:
        return Path(given.path(chosen))
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "kcmoe"
    except RuntimeError:  # nobody's home
        return None


def kept(name: str = "programs") -> Kept:
    """What else takes long to make: compiled programs, and what of a model or vocabulary never changes."""
    path = folder()
    return Kept(None if path is None else path / name)


def enable() -> None:
    """Points JAX at the cache, unless the person has chosen one for JAX already."""
    import jax

    path = folder()
    if path is None or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    try:
        (path / "jax").mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a home that cannot be written to costs compile time, not the run
    jax.config.update("jax_compilation_cache_dir", str(path / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
