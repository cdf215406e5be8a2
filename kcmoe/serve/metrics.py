# SPDX-License-Identifier: Apache-2.0
"""Counters and histograms in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable

_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Counts of values up to each bound, their sum and number."""

    def __init__(self, bounds: tuple[float, ...] = _BOUNDS_S):
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Takes one value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> list[str]:
        """Cumulative buckets, sum and count."""
        found, total = [], 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{{labels},le="{bound}"}} {total}')
        return [
            *found,
            f"{name}_sum{{{labels}}} {self._sum:.9g}",
            f"{name}_count{{{labels}}} {total}",
        ]


class Metrics:
    """What the server counts; may be told from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = {}
        self._seconds: dict[str, Histogram] = {}
        self._lines: dict[str, int] = {}
        self._batches: dict[str, Histogram] = {}
        self._busy: dict[str, float] = {}
        self._compiled = 0
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        with self._lock:
            self._requests[path, status] = self._requests.get((path, status), 0) + 1
            self._seconds.setdefault(path, Histogram()).add(seconds)

    def batch(self, kind: str, lines: int, seconds: float, compiled: bool) -> None:
        """Counts a computed batch."""
        with self._lock:
            self._lines[kind] = self._lines.get(kind, 0) + lines
            self._busy[kind] = self._busy.get(kind, 0.0) + seconds
            self._batches.setdefault(kind, Histogram((1, 2, 4, 8, 16, 32, 64, 128))).add(lines)
            self._compiled += compiled

    def text(self) -> str:
        """The exposition."""
        with self._lock:
            lines = ["# HELP kcmoe_requests_total Answered requests.",
                     "# TYPE kcmoe_requests_total counter"]  # fmt: skip
            for (path, status), count in sorted(self._requests.items()):
                lines.append(f'kcmoe_requests_total{{path="{path}",status="{status}"}} {count}')
            lines += ["# HELP kcmoe_request_seconds Time from a request's first byte to its answer.",
                      "# TYPE kcmoe_request_seconds histogram"]  # fmt: skip
            for path, histogram in sorted(self._seconds.items()):
                lines += histogram.lines("kcmoe_request_seconds", f'path="{path}"')
            lines += [
                "# HELP kcmoe_lines_total Lines computed.",
                "# TYPE kcmoe_lines_total counter",
            ]
            lines += [
                f'kcmoe_lines_total{{kind="{k}"}} {n}' for k, n in sorted(self._lines.items())
            ]
            lines += ["# HELP kcmoe_busy_seconds_total Time spent computing.",
                      "# TYPE kcmoe_busy_seconds_total counter"]  # fmt: skip
            for kind, busy_s in sorted(self._busy.items()):
                lines.append(f'kcmoe_busy_seconds_total{{kind="{kind}"}} {busy_s:.9g}')
            lines += ["# HELP kcmoe_batch_lines Lines computed together.",
                      "# TYPE kcmoe_batch_lines histogram"]  # fmt: skip
            for kind, histogram in sorted(self._batches.items()):
                lines += histogram.lines("kcmoe_batch_lines", f'kind="{kind}"')
            lines += ["# HELP kcmoe_programs_compiled_total Programs compiled or read from the cache.",
                      "# TYPE kcmoe_programs_compiled_total counter",
                      f"kcmoe_programs_compiled_total {self._compiled}"]  # fmt: skip
        for name, (explanation, value) in self.gauges.items():
            lines += [f"# HELP {name} {explanation}", f"# TYPE {name} gauge", f"{name} {value():g}"]
        return "\n".join(lines) + "\n"
