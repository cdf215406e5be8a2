# SPDX-License-Identifier: Apache-2.0
"""Processes that share work. Ctrl-C reaches all of a terminal's at once, and one line is to come of it.

A process that is importing, or waits for work, would print a traceback of its own; so all are born deaf to
it, and the parent tells those that work.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import resource_tracker
from typing import Any

_stopping: Any = None  # in a process of a pool: the event that says so


def check() -> None:
    """To be called now and then by long work in a pool; raises KeyboardInterrupt once the parent got one."""
    if _stopping is not None and _stopping.is_set():
        raise KeyboardInterrupt


class Pool(ProcessPoolExecutor):
    """A pool of fresh processes which do not hear Ctrl-C."""

    def __init__(
        self,
        workers: int,
        initializer: Callable[..., None] | None = None,
        initargs: tuple[Any, ...] = (),
    ):
        context = multiprocessing.get_context("spawn")
        # When it starts it unblocks what `submit` blocks, so it starts before.
        resource_tracker.ensure_running()
        self._stop = context.Event()
        super().__init__(workers, context, _begin, (self._stop, initializer, initargs))

    def submit(self, *args: Any, **options: Any) -> Future[Any]:
        """As `ProcessPoolExecutor`, which starts processes here, to the end."""
        with _unheard():
            return super().submit(*args, **options)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Waits for the work there is; after an error or Ctrl-C for what has begun, which `check` ends."""
        if kind is not None and not issubclass(kind, Exception):
            self._stop.set()
        with _unheard():
            self.shutdown(cancel_futures=kind is not None)


def _begin(stop: Any, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    global _stopping
    _stopping = stop
    if initializer is not None:
        initializer(*initargs)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Lets no Ctrl-C interrupt the block, or reach a process that is born in it; afterwards it counts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # Other threads may be given the signal, and then this one would run Python's handler.
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(signal.SIGINT)
