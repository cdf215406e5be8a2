# SPDX-License-Identifier: Apache-2.0
"""Loads single modules of kcmoe.t5x where SeqIO is absent, and runs T5X in processes of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
# A model that T5X compiles in seconds; every macro of it is one that people override too.
SMALL = {
    "NUM_ENCODER_LAYERS": 2,
    "NUM_DECODER_LAYERS": 2,
    "NUM_HEADS": 2,
    "HEAD_DIM": 16,
    "EMBED_DIM": 32,
    "MLP_DIM": 64,
    "NUM_EXPERTS": 4,
}


@pytest.fixture
def load() -> Callable[[str], ModuleType]:
    """Imports kcmoe/t5x/<name>.py without the package around it, which asks for SeqIO first."""

    def loader(name: str) -> ModuleType:
        path = ROOT / "kcmoe/t5x" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"alone_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return loader


@pytest.fixture(scope="session")
def small() -> dict[str, int]:
    return SMALL


@pytest.fixture(scope="session")
def python_m() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m MODULE ARGUMENTS…` from the root of the clone, as the documents say."""

    def runner(module: str, *arguments: str, **macros: object) -> subprocess.CompletedProcess[str]:
        bindings = [f"--gin.{name}={value!r}" for name, value in macros.items()]
        environment = {**os.environ, "XLA_FLAGS": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
        # Flaxformer mixes dtypes; strict promotion is for our own code.
        environment["JAX_NUMPY_DTYPE_PROMOTION"] = "standard"
        return subprocess.run(
            [sys.executable, "-m", module, *arguments, *bindings],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return runner
