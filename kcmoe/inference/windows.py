# SPDX-License-Identifier: Apache-2.0
"""Rows of a file in windows, and their answers, computed here while a thread reads and tokenizes ahead.

Within a window lines are sorted by length, so that batches are full. How rows fall into windows changes no
answer, so windows are as long as suits the speed: what a kill destroys is half a minute's work.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from kcmoe.data.whole import WholeChunk
from kcmoe.inference import asking
from kcmoe.inference.asking import Cells, Question, Row
from kcmoe.inference.batching import Advance

if TYPE_CHECKING:
    from kcmoe.inference.predict import LanguageModel

_FIRST_ROWS, _MOST_ROWS = 256, 16384
_SECONDS = 20.0  # that a window should take
_CHARACTERS = 32 << 20  # a window of fewer rows where they are long
_AHEAD = 1  # windows waiting, beside the one that is being made
_LOOK_S = 0.1

Item = TypeVar("Item")


class Windows:
    """The rows of `chunks` behind the first `skip`, in lists.

    Attributes:
      rows: how many the next one has.
    """

    def __init__(self, chunks: Iterable[WholeChunk], columns: Sequence[str], skip: int):
        self._chunks, self._columns, self._skip = chunks, columns, skip
        self.rows = _FIRST_ROWS

    def __iter__(self) -> Iterator[list[Row]]:
        window: list[Row] = []
        held, skip = 0, self._skip
        for chunk in self._chunks:
            if skip >= chunk.count:
                skip -= chunk.count
                continue
            for row in zip(*(chunk.asked[name][skip:] for name in self._columns), strict=True):
                window.append(row)
                held += sum(len(cell) for cell in row if isinstance(cell, str))
                if len(window) >= self.rows or held > _CHARACTERS:
                    yield window
                    window, held = [], 0
            skip = 0
        if window:
            yield window

    def took(self, rows: int, seconds: float) -> None:
        """Lets following windows be as long as suits this speed."""
        suits = int(rows * _SECONDS / max(seconds, 1e-3))
        self.rows = max(64, min(suits, rows * 4, _MOST_ROWS))


def ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Yields `items`, which a thread makes a little ahead; what it raises is raised here."""
    waiting: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(item: Item | None, error: BaseException | None = None) -> None:
        while not stop.is_set():
            try:
                return waiting.put((item, error), timeout=_LOOK_S)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(None, error)

    # A daemon, since someone who presses Ctrl-C does not wait for it.
    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join(timeout=1)


def answered(
    model: LanguageModel,
    asked: Question,
    windows: Iterable[list[Row]],
    advance: Advance | None = None,
) -> Iterator[list[Cells | None]]:
    """Yields the answers to each window; `advance` is told how many rows are done."""
    made = ahead(asking.encode(model, asked, window) for window in windows)
    with contextlib.closing(made):
        for encoded in made:
            began = time.monotonic()
            found = asking.answer(model, asked, encoded, advance)
            if advance is not None:
                advance(encoded.rows - len(encoded.ids))
            if isinstance(windows, Windows):
                windows.took(encoded.rows, time.monotonic() - began)
            yield found
