# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C where it comes too late or too soon: while XLA compiles, and while jaxlib is being imported."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def short_patience(seconds: float, said: Callable[[], str]) -> Iterator[None]:
    """A block whose work may be cut anywhere: Ctrl-C ends the program so much later if it has not left it.

    Args:
      seconds: that a `KeyboardInterrupt` has to leave the block.
      said: what is printed before the program ends with status 130.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = os.pipe()  # Python writes the number of each signal to it at once
    os.set_blocking(told, False)
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    left = threading.Event()

    def watch() -> None:
        while number := os.read(heard, 1):
            if number[0] == signal.SIGINT and not left.wait(seconds):
                print(said(), file=sys.stderr, flush=True)
                os._exit(130)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(told)
        thread.join()
        os.close(heard)


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """A short block that no Ctrl-C interrupts; one that comes meanwhile acts at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if came:
            signal.raise_signal(signal.SIGINT)
