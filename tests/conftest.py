# SPDX-License-Identifier: Apache-2.0
"""What every test shares: two virtual CPU devices, strict promotion of dtypes, and what to do where a test
needs more than this process or this machine has.

The settings must be made before JAX is imported, which is why they stand above everything else. Processes
that tests start inherit them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# float32 + bfloat16 is an error instead of a silent float32, which would hide a slow or wrong product.
# Flaxformer mixes dtypes, so where T5X runs in this process promotion is JAX's usual one.
os.environ.setdefault(
    "JAX_NUMPY_DTYPE_PROMOTION", "standard" if importlib.util.find_spec("t5x") else "strict"
)
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flag = "--xla_force_host_platform_device_count=2"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import pytest

DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
_LEVEL = "--xla_backend_optimization_level"


def pytest_configure(config: pytest.Config) -> None:
    """Has XLA compile quickly, not well, where the slow tests are left out: compiling is most of the time.

    All tests together, and any asked for by name, run the programs that a user runs.
    """
    if config.option.markexpr == "not slow" and _LEVEL not in os.environ["XLA_FLAGS"]:
        os.environ["XLA_FLAGS"] += f" {_LEVEL}=0"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips `t5x` and `gpu` tests where those are not there, and says why."""
    has_t5x = all(importlib.util.find_spec(name) for name in ("t5x", "flaxformer", "seqio"))
    has_gpu = "cpu" not in os.environ["JAX_PLATFORMS"]
    for item in items:
        if item.get_closest_marker("t5x") and not has_t5x:
            item.add_marker(pytest.mark.skip(reason="T5X, Flaxformer or SeqIO is not installed"))
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="run with JAX_PLATFORMS=cuda on a GPU machine"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test marked `devices(4)` in a process that has so many, where this one has fewer.

    All tests of a file that ask for as many run in that process together; the first one starts it.
    """
    marker = pyfuncitem.get_closest_marker("devices")
    here = int(DEVICES.search(os.environ["XLA_FLAGS"])[1])  # type: ignore[index]
    if marker is None or here >= marker.args[0] or "cpu" not in os.environ["JAX_PLATFORMS"]:
        return None
    done = _with_devices(pyfuncitem.path, marker.args[0], pyfuncitem.config)
    verdict = re.search(rf"^(\w+) {re.escape(pyfuncitem.nodeid)}(?: |$)", done, re.MULTILINE)
    if verdict is None or verdict[1] != "PASSED":
        pytest.fail(f"with {marker.args[0]} devices:\n{done}", pytrace=False)
    return True


_OUTPUTS: dict[tuple[Path, int], str] = {}


def _with_devices(path: Path, count: int, config: pytest.Config) -> str:
    """What pytest printed of the file's tests that are marked for `count` devices."""
    if (path, count) not in _OUTPUTS:
        flags = DEVICES.sub("", os.environ["XLA_FLAGS"])
        flags = f"{flags} --xla_force_host_platform_device_count={count}".strip()
        marks = "devices" + (f" and ({config.option.markexpr})" if config.option.markexpr else "")
        command = [sys.executable, "-m", "pytest", str(path), "-m", marks, "-rA", "-q"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
        if selected := config.getoption("keyword"):
            command += ["-k", selected]
        done = subprocess.run(
            command,
            cwd=config.rootpath,
            env={**os.environ, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
        )
        _OUTPUTS[path, count] = done.stdout + done.stderr
    return _OUTPUTS[path, count]


@pytest.fixture(scope="session")
def golden() -> Path:
    """The reference case that lies in the repository: numbers of T5X + Flaxformer for a small model."""
    return Path(__file__).parent / "testdata" / "packed_top2"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of larger reference cases, beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip("the larger reference cases are not beside this repository")
    return folder


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that is gs://bucket, see `fake_bucket`; TensorStore asks for its address once a process."""
    from tests.fake_bucket import served

    folder = tmp_path_factory.mktemp("bucket")
    with served(folder):
        yield folder
