# SPDX-License-Identifier: Apache-2.0
"""Stopping: the first signal is answered at once, the second kills, and before training neither is held."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kcmoe.training import loop
from kcmoe.training.stopping import StopRequest

# As a step of XLA: no line of Python runs until it ends.
LONG_STEP = """
import hashlib
from kcmoe.training.stopping import StopRequest
with StopRequest():
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell that starts the tests in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_kept_and_all_is_as_before_afterwards(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with StopRequest() as stop:
        assert not stop
        signal.raise_signal(signal.SIGINT)
        assert stop.name == "SIGINT"
    assert "SIGINT: stopping after this step and saving" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with StopRequest() as stop:
        pass
    assert not stop
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_within_a_long_step_the_first_is_answered_and_the_second_kills(
    second: signal.Signals,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LONG_STEP],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stderr is not None
            assert running.stdout.readline() == "begun\n"
            running.send_signal(signal.SIGINT)
            running.send_signal(signal.SIGINT)  # the same Ctrl-C, passed on by a launcher
            assert "again to stop at once" in running.stderr.readline()
            time.sleep(0.5)
            assert running.poll() is None
            running.send_signal(second)
            assert running.wait(timeout=20) == -second
        finally:
            running.kill()


def test_before_training_ctrl_c_interrupts(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenize(settings: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return toy.inputs()

    monkeypatch.setattr(loop, "open_inputs", tokenize)
    with pytest.raises(KeyboardInterrupt):
        loop.train(toy.settings(tmp_path / "run", TRAIN_STEPS=1), say=lambda line: None)
    assert not (tmp_path / "run").exists()
