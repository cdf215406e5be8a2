# SPDX-License-Identifier: Apache-2.0
"""A million steps as a few hundred intervals, whose means, minima and maxima stay.

Records come in parts, so that no run is ever held in memory whole. Knows steps and numbers only.
"""

from __future__ import annotations

import numpy as np

INTERVALS = 600
COLUMNS = 240  # of a heat map


class Intervals:
    """Which interval a step belongs to: one step each for short runs.

    Args:
      first, last: steps of the run.
      count: most intervals.
    """

    def __init__(self, first: int, last: int, count: int):
        self.first, self.last = first, last
        steps = last - first + 1
        self.count = min(steps, count)
        self.exact = self.count == steps
        self._steps = steps

    def parts(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which intervals the ascending steps int [N] fall into, and where in `steps` each begins."""
        inside = np.clip(steps - self.first, 0, self._steps - 1)
        at = inside * self.count // self._steps
        starts = np.flatnonzero(np.diff(at, prepend=-1))
        return at[starts], starts

    def centres(self) -> np.ndarray:
        """float [count]: the step in the middle of each."""
        width = self._steps / self.count
        return self.first + (np.arange(self.count) + 0.5) * width - 0.5


class Series:
    """Sum, number, minimum and maximum of one metric per interval, and where it was no number."""

    def __init__(self, intervals: Intervals):
        self._intervals = intervals
        self._sum = np.zeros(intervals.count)
        self._number = np.zeros(intervals.count)
        self._low = np.full(intervals.count, np.inf)
        self._high = np.full(intervals.count, -np.inf)
        self.first_not_finite: int | None = None
        self.highest: tuple[float, int] = (-np.inf, 0)

    def add(self, steps: np.ndarray, values: np.ndarray) -> None:
        """Takes values float [N] at steps int [N], ascending."""
        finite = np.isfinite(values)
        if not finite.all() and self.first_not_finite is None:
            self.first_not_finite = int(steps[~finite][0])
        steps, values = steps[finite], values[finite]
        if not len(values):
            return
        at, starts = self._intervals.parts(steps)
        self._sum[at] += np.add.reduceat(values, starts)
        self._number[at] += np.diff([*starts, len(values)])
        self._low[at] = np.minimum(self._low[at], np.minimum.reduceat(values, starts))
        self._high[at] = np.maximum(self._high[at], np.maximum.reduceat(values, starts))
        place = int(np.argmax(values))
        self.highest = max(self.highest, (float(values[place]), int(steps[place])))

    def mean(self) -> np.ndarray:
        """float [count], NaN where there is no value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self._number > 0, self._sum / self._number, np.nan)

    def low(self) -> np.ndarray:
        """float [count], the smallest value of each interval."""
        return np.where(self._number > 0, self._low, np.nan)

    def high(self) -> np.ndarray:
        """float [count], the largest value of each interval."""
        return np.where(self._number > 0, self._high, np.nan)

    def recent(self, share: float = 0.1) -> float:
        """Mean over the last part of the run; NaN if there is no value."""
        count = max(1, int(share * self._intervals.count))
        number = self._number[-count:].sum()
        return float(self._sum[-count:].sum() / number) if number else float("nan")


class Loads:
    """The load of each expert of a layer per interval, and signs of collapse step by step.

    Args:
      intervals: those of the heat map.
      experts: E.
      window: steps over which collapse is judged.
      threshold: effective experts below which a layer is collapsing.
    """

    def __init__(self, intervals: Intervals, experts: int, window: int, threshold: float):
        self._intervals, self._window, self._threshold = intervals, window, threshold
        self._sum = np.zeros((intervals.count, experts))
        self._number = np.zeros(intervals.count)
        self._before = np.zeros((0, experts))
        self._steps_before = np.zeros(0, np.int64)
        self.last_seen = np.full(experts, -1, np.int64)
        self.collapses: list[tuple[int, int | None, float]] = []  # begin, end, fewest experts

    def add(self, steps: np.ndarray, loads: np.ndarray) -> None:
        """Takes loads float [N, E] at steps int [N], ascending."""
        at, starts = self._intervals.parts(steps)
        self._sum[at] += np.add.reduceat(np.nan_to_num(loads), starts)
        self._number[at] += np.diff([*starts, len(loads)])
        seen = loads > 0
        latest = np.where(
            seen.any(axis=0), steps[len(steps) - 1 - np.argmax(seen[::-1], axis=0)], -1
        )
        self.last_seen = np.maximum(self.last_seen, latest)
        self._watch(steps, loads)

    def _watch(self, steps: np.ndarray, loads: np.ndarray) -> None:
        window = self._window
        whole = np.concatenate([self._before, loads])
        whole_steps = np.concatenate([self._steps_before, steps])
        self._before, self._steps_before = whole[-(window - 1) :], whole_steps[-(window - 1) :]
        if len(whole) < window or self._threshold <= 0:
            return
        sums = np.cumsum(np.concatenate([np.zeros((1, whole.shape[1])), whole]), axis=0)
        effective = effective_experts(sums[window:] - sums[:-window])
        running = bool(self.collapses) and self.collapses[-1][1] is None
        if not running and effective.min() >= self._threshold:
            return
        begins, ends = whole_steps[: len(effective)], whole_steps[window - 1 :]
        for begin, end, value in zip(begins, ends, effective, strict=True):
            running = bool(self.collapses) and self.collapses[-1][1] is None
            if running:
                first, _, fewest = self.collapses[-1]
                over = value > 1.2 * self._threshold  # some more than at the beginning: no flicker
                self.collapses[-1] = (first, int(end) if over else None, min(fewest, float(value)))
            elif value < self._threshold:
                self.collapses.append((int(begin), None, float(value)))

    def heat(self) -> np.ndarray:
        """float [E, count]: mean load; NaN where there is no step."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self._sum / self._number[:, None]
        return np.where(self._number[:, None] > 0, mean, np.nan).T


def effective_experts(loads: np.ndarray) -> np.ndarray:
    """exp(entropy) of each row of `loads` [N, E] -> float [N], between 1 and E."""
    share = np.maximum(loads, 0) / np.maximum(loads.sum(axis=1, keepdims=True), 1e-30)
    return np.exp(-np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=1))
