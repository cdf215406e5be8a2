# SPDX-License-Identifier: Apache-2.0
"""How far a long job is: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_LINE_S = 60.0


class Progress:
    """A context that is told of rows done; shows rows/s and the time that is left on stderr."""

    def __init__(self, what: str, total: int | None, done: int = 0):
        from tqdm import tqdm

        self._what, self._total, self._done = what, total, done
        # None: on terminals only.
        self._bar = tqdm(
            total=total, initial=done, desc=what, disable=None, unit=" lines", file=sys.stderr,
            leave=False, delay=1, smoothing=0.05,
        )  # fmt: skip
        self._began = self._told = time.monotonic()
        self._before: int | None = None  # rows done when the clock began

    def __call__(self, rows: int) -> None:
        """Takes note of `rows` more."""
        self._done += rows
        self._bar.update(rows)
        now = time.monotonic()
        if self._before is None:
            # Before the first rows were done programs were loaded or compiled, once.
            self._before, self._began = self._done, now
        if self._bar.disable and now > self._began and now - self._told >= _LINE_S:
            self._told = now
            print(f"kcmoe predict: {self.line(now - self._began)}", file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """What is done after `seconds`, in words."""
        speed = (self._done - (self._before or 0)) / seconds
        if not self._total:
            return f"{self._what}: {self._done:,} lines, {speed:,.0f} lines/s"
        left = (self._total - self._done) / speed if speed else float("inf")
        return (
            f"{self._what}: {self._done:,} of {self._total:,} lines, {speed:,.0f} lines/s, "
            f"{duration(left)} left"
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """A time as people say it: "3 h 12 min", "41 s"."""
    if seconds == float("inf"):
        return "an unknown time"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
