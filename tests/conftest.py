# SPDX-License-Identifier: Apache-2.0
"""What every test shares: four virtual CPU devices, and a skip for tests whose machine is missing.

The flags must be set before JAX is imported, which is why they stand above everything else.
"""

from __future__ import annotations

import importlib.util
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flag = "--xla_force_host_platform_device_count=4"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips `t5x` and `gpu` tests where those are not there, and says why."""
    has_t5x = all(importlib.util.find_spec(name) for name in ("t5x", "flaxformer", "seqio"))
    has_gpu = "cpu" not in os.environ["JAX_PLATFORMS"]
    for item in items:
        if item.get_closest_marker("t5x") and not has_t5x:
            item.add_marker(pytest.mark.skip(reason="T5X, Flaxformer or SeqIO is not installed"))
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="run with JAX_PLATFORMS=cuda on a GPU machine"))
