# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while processes share work: the parent alone speaks, whenever it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_PROGRAM = """
import os, sys, time
from kcmoe.io.processes import Pool, check

def work(folder, seconds):
    try:
        open(f"{folder}/half-written", "w").close()
        for _ in range(10 * seconds):
            time.sleep(0.1)
            check()
    finally:
        os.unlink(f"{folder}/half-written")

if __name__ == "__main__":
    try:
        with Pool(2) as pool:
            if sys.argv[2] == "idle":
                pool.submit(work, sys.argv[1], 0).result()
            print("begun", flush=True)
            job = pool.submit(work, sys.argv[1], 60) if sys.argv[2] != "idle" else None
            time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
"""


@pytest.mark.parametrize("moment", ["starting", "working", "idle"])
def test_an_interrupt_is_the_parents_alone(tmp_path: Path, moment: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(_PROGRAM, encoding="utf-8")
    # A shell that starts the tests in the background ignores SIGINT, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), moment],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        until = time.monotonic() + 30
        while moment == "working" and not (tmp_path / "half-written").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(0.02)
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=30)
    assert (running.returncode, said) == (130, "interrupted\n")
    assert not (tmp_path / "half-written").exists()
