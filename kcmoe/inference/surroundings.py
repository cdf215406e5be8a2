# SPDX-License-Identifier: Apache-2.0
"""What a compiled program depends on besides the model: versions, code, machine. Imports no JAX."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

from kcmoe import __version__
from kcmoe.io import hashing

# Beside the model's, whatever the programs are made of.
_SOURCES = (
    "inference/score.py",
    "inference/embed.py",
    "inference/decode.py",
    "inference/compute.py",
    "config/model.py",
)


@functools.cache
def surroundings() -> dict[str, Any]:
    """What a program depends on besides the model and the call: versions, code, machine, settings of JAX."""
    package = Path(__file__).parents[1]
    files = [*sorted((package / "model").rglob("*.py")), *(package / name for name in _SOURCES)]
    code = hashing.sha256(b"\0".join(file.read_bytes() for file in files))
    prefixes = ("JAX_", "XLA_", "KCMOE_OWN_GRADIENTS", "NPROC")
    no_matter = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE", "JAX_LOG", "JAX_PLATFORM")
    return {
        "kcmoe": __version__,
        "code": code,
        "versions": [_version(name) for name in ("jax", "jaxlib", "flax")],
        "machine": _machine(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(prefixes) and not name.startswith(no_matter)
        },
    }


def _version(package: str) -> str:
    """Digest of the file in which a package has its version; importing it would take longer."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return ""
    file = Path(found.origin).with_name("version.py")
    return hashing.file_digest(file) if file.is_file() else ""


def _machine() -> list[str]:
    """Processor, what it can do, and how many of it there are for this process."""
    facts: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                if not name.strip():
                    break
                facts[name.strip()] = value.strip()
    except OSError:
        pass
    wanted = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part")
    counted = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    machine = [platform.system(), platform.machine(), str(len(counted))]
    return [*machine, *(facts.get(name, "") for name in wanted)]
