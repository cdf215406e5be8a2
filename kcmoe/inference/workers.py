# SPDX-License-Identifier: Apache-2.0
"""Windows of rows answered by several processes, each with the model and its share of the cores.

The parent reads, hands out windows and puts answers in order; it never imports JAX. A worker ends with its
parent, whatever ends that: the pipe between them breaks.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

from kcmoe.errors import UserError
from kcmoe.inference.asking import Cells, Question, Row
from kcmoe.inference.batching import Advance
from kcmoe.inference.loading import Found
from kcmoe.inference.windows import Windows, answered

_IN_FLIGHT = 2  # windows a worker has: one computed, one tokenized
_TELL_S = 0.5
_ENDED = (
    "a worker process has ended (killed, or out of memory?); the answers so far are kept and the same "
    "command goes on, perhaps with fewer --processes"
)


def answered_by(
    processes: int, found: Found, asked: Question, windows: Windows, advance: Advance
) -> Iterator[list[Cells | None]]:
    """Yields the answers to each window in order; `advance` is told how many rows are done.

    Raises:
      UserError: what a worker raises, or if one ends.
    """
    context = multiprocessing.get_context("spawn")
    shares = _shares(processes)
    pipes, workers = [], []
    try:
        # Ctrl-C reaches all, and is the parent's to see to: workers are born deaf to it. The tracker would
        # unblock it when it starts with the first of them.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for share in shares:
                here, there = context.Pipe()
                pipes.append(here)
                worker = context.Process(
                    target=_work, args=(there, found, asked, share), daemon=True
                )
                worker.start()
                workers.append(worker)
                there.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from _in_order(pipes, windows, advance)
    finally:
        # In this order: a worker that sees its pipe break while it starts would print that.
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(5)
        for pipe in pipes:
            pipe.close()


def _in_order(pipes: list[Any], windows: Windows, advance: Advance) -> Iterator[list[Cells | None]]:
    source = enumerate(windows)
    begun: dict[Any, list[tuple[int, int, float]]] = {pipe: [] for pipe in pipes}
    finished: dict[int, list[Cells | None]] = {}
    following = 0
    exhausted = False
    while True:
        for pipe in pipes:
            # One slow worker does not make answers of the others pile up.
            while not exhausted and len(begun[pipe]) < _IN_FLIGHT and len(finished) < 64:
                number, window = next(source, (-1, []))
                exhausted = number < 0
                if not exhausted:
                    begun[pipe].append((number, len(window), time.monotonic()))
                    _send(pipe, window)
        if exhausted and not any(begun.values()):
            return
        for ready in multiprocessing.connection.wait(pipes):
            message = _received(ready)
            if isinstance(message, int):
                advance(message)
                continue
            number, rows, since = begun[ready].pop(0)
            windows.took(rows, (time.monotonic() - since) / _IN_FLIGHT)
            finished[number] = message
        while following in finished:
            yield finished.pop(following)
            following += 1


def _send(pipe: Any, window: list[Row]) -> None:
    try:
        pipe.send(window)
    except OSError:
        raise UserError(_ENDED) from None


def _received(pipe: Any) -> Any:
    try:
        message = pipe.recv()
    except (EOFError, OSError):
        raise UserError(_ENDED) from None
    if isinstance(message, str):
        raise UserError(message)
    return message


def _shares(processes: int) -> list[list[int]]:
    """The cores of each worker."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < processes:
        return [cores] * processes
    return [cores[number::processes] for number in range(processes)]


def _work(pipe: Any, found: Found, asked: Question, cores: list[int]) -> None:
    """Answers windows until the parent is gone."""
    if cores:
        os.sched_setaffinity(0, cores)  # before XLA counts them
    from kcmoe.inference import loading
    from kcmoe.inference.predict import LanguageModel
    from kcmoe.inference.runtime import computes_on_cpu

    def windows() -> Iterator[list[Row]]:
        while True:
            try:
                yield pipe.recv()
            except (EOFError, OSError):
                os._exit(1)

    done, told = 0, time.monotonic()

    def advance(rows: int) -> None:
        nonlocal done, told
        done += rows
        if time.monotonic() - told > _TELL_S:
            pipe.send(done)
            done, told = 0, time.monotonic()

    try:
        if not computes_on_cpu():
            raise UserError("--processes is for CPUs: one process uses all of an accelerator")
        model = LanguageModel(loading.load(found))
        for answers in answered(model, asked, windows(), advance):
            pipe.send(done)
            done = 0
            pipe.send(answers)
    except UserError as error:
        pipe.send(str(error))
    except OSError:  # the parent is gone
        os._exit(1)
