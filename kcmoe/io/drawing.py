# SPDX-License-Identifier: Apache-2.0
"""The one look of our pictures: what a picture shows, as data, and how it looks.

Lines, bars, histograms and heat maps, in colours that the colour-blind can tell apart (Okabe and Ito, Color
Universal Design, 2008) and that each come with a dash or a label, too. `drawing_svg.py` and `drawing_png.py`
draw it. Knows numbers, not runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

# Whoever shows an SVG chooses the first that it has; all but the first have Hangul.
FONTS = (
    "system-ui, 'Apple SD Gothic Neo', 'Malgun Gothic', 'Noto Sans KR', 'Noto Sans CJK KR', "
    "NanumGothic, sans-serif"
)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D4A9C", "#7A7A7A")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "", "7 3", "2 3", "9 3 2 3")
# Dark to light, evenly in lightness, safe for every colour vision: knots of a map like cividis.
HEAT = (
    (0, 32, 77),
    (55, 68, 108),
    (102, 105, 112),
    (149, 143, 120),
    (199, 183, 107),
    (255, 234, 70),
)
# What is left outside: rarer than this at either end, and so many times as far away as the rest is wide.
RARE, _FAR = 0.003, 3.0
INK, SOFT, LINE = "#1b1f24", "#57606a", "#d9dcd8"


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
      name: what the legend calls it.
      x: float [N], ascending.
      y: float [N]; NaN makes a gap.
      low, high: float [N], what the values lie between where `y` is a mean of many; None for none.
      dots: whether it is drawn as points, as for rare measurements.
      colour: index into `COLOURS`, by default the line's place in its picture.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dots: bool = False
    colour: int | None = None


@dataclasses.dataclass(frozen=True)
class Mark:
    """A place on the horizontal axis, e.g. a restart."""

    x: float
    name: str


@dataclasses.dataclass(frozen=True)
class Heat:
    """A matrix over an axis of time.

    Attributes:
      values: float [rows, columns]; NaN is left empty.
      first, last: what the outer edges of the columns stand for.
      top: the value of the brightest colour.
    """

    values: np.ndarray
    first: float
    last: float
    top: float


@dataclasses.dataclass(frozen=True)
class Bars:
    """Groups of bars side by side.

    Attributes:
      groups: labels of the groups, e.g. tasks.
      series: (name, float per group); NaN leaves a bar out.
      errors: as `series`, half the length of the error bars; empty for none.
    """

    groups: Sequence[str]
    series: Sequence[tuple[str, Sequence[float]]]
    errors: Sequence[Sequence[float]] = ()


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture: a title, axes, and one of lines, a heat map or bars.

    Attributes:
      name: short, for files: letters, digits and hyphens.
      note: a sentence below the title.
      scale: of the vertical axis; "log" leaves out what is not above zero.
    """

    name: str
    title: str
    x: str = ""
    y: str = ""
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    heat: Heat | None = None
    bars: Bars | None = None
    note: str = ""
    scale: Literal["linear", "log"] = "linear"


def histogram(values: np.ndarray, bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Steps of a histogram with up to `bins` bins as a line: (places, counts), float, two each.

    Whole numbers get bins of as many of them each, as others would be empty or double here and there; and
    an empty bin at either end, so that one number alone is seen to be one.
    """
    edges: np.ndarray | int = bins
    if len(values) and np.array_equal(values, np.round(values)):
        low, high = int(np.min(values)), int(np.max(values))
        width = math.ceil((high - low + 1) / bins)
        edges = np.arange(low - width, high + 2 * width + 1, width) - 0.5
    counts, edges = np.histogram(values, edges)
    return np.repeat(edges, 2)[1:-1], np.repeat(counts, 2).astype(np.float64)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two bounds, about `count` of them."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number as an axis shows it: 1,500, 2.5M, 0.003."""
    size = abs(value)
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            scaled = value / (1e3 if name == "k" else unit)
            return f"{scaled:.4g}{name}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 1e-3 or not size else f"{value:.0e}".replace("e-0", "e-")


def labels(values: Sequence[float]) -> list[str]:
    """Numbers of one axis as it shows them, with as many digits as their distances need."""
    found = [number(value) for value in values]
    if len(values) < 2:
        return found
    step = min(abs(b - a) for a, b in itertools.pairwise(values)) or 1.0
    largest = max(map(abs, values))
    if step >= 0.01 * largest:  # three digits, as `number` has, keep them apart
        return found
    digits = math.ceil(math.log10(largest / step)) + 2
    return [f"{value:,.{digits}g}" for value in values]


def bounds(picture: Picture) -> tuple[float, float, float, float]:
    """(lowest x, highest x, lowest y, highest y) of the lines, with a little air above and below.

    A rare value that would press all others flat is left outside; who draws marks where.
    """
    xs = [v for line in picture.lines for v in (line.x[:1], line.x[-1:]) for v in v]
    x_low, x_high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    ys = np.concatenate(
        [
            np.asarray(values, np.float64)
            for line in picture.lines
            for values in (line.y, line.low, line.high)
            if values is not None
        ]
        or [np.zeros(0)]
    )
    ys = ys[np.isfinite(ys) & ((ys > 0) | (picture.scale == "linear"))]
    y_low, y_high = (float(ys.min()), float(ys.max())) if len(ys) else (0.0, 1.0)
    if picture.scale == "linear" and len(ys):
        usual_low, usual_high = (float(q) for q in np.quantile(ys, (RARE, 1 - RARE)))
        far = _FAR * (usual_high - usual_low)
        y_low = usual_low if 0 < far < usual_low - y_low else y_low
        y_high = usual_high if 0 < far < y_high - usual_high else y_high
    if picture.scale == "log":
        return x_low, x_high, y_low / 1.1, max(y_high * 1.1, y_low * 1.3)
    air = 0.06 * (y_high - y_low) or max(abs(y_high) * 0.1, 1e-6)
    floor = 0.0 if y_low >= 0 and y_low - air < 0.25 * y_high else y_low - air
    return x_low, x_high, floor, y_high + air


def heat_colours(values: np.ndarray, top: float) -> np.ndarray:
    """float [..., R, C] -> uint8 [..., R, C, 4]; NaN is transparent."""
    share = np.clip(np.nan_to_num(values / (top or 1.0)), 0.0, 1.0) * (len(HEAT) - 1)
    knots = np.array(HEAT, np.float64)
    low = np.minimum(share.astype(int), len(HEAT) - 2)
    mixed = knots[low] + (share - low)[..., None] * (knots[low + 1] - knots[low])
    alpha = np.where(np.isfinite(values), 255, 0)[..., None]
    return np.concatenate([mixed.round(), alpha], axis=-1).astype(np.uint8)


def style(line: Line, place: int) -> tuple[str, str]:
    """(colour, dash) of a line."""
    index = (place if line.colour is None else line.colour) % len(COLOURS)
    return COLOURS[index], DASHES[index]
