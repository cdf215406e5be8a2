# SPDX-License-Identifier: Apache-2.0
"""Pictures as SVG, written by hand: no library, nothing from elsewhere inside; and pictures to files."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from kcmoe.errors import UserError
from kcmoe.io.drawing import (
    COLOURS,
    FONTS,
    INK,
    LINE,
    SOFT,
    Line,
    Picture,
    bounds,
    heat_colours,
    labels,
    number,
    style,
    ticks,
)
from kcmoe.io.png_file import png_bytes

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 30, 40
_HALF_DIGIT = 3.8  # half as wide as a digit of the axes is at most
_Axis = Callable[..., Any]  # the place of a value, or of an array of them, on an axis


def svg(
    picture: Picture, width: int = _WIDTH, height: int = _HEIGHT, *, titled: bool = True
) -> str:
    """The picture as an `<svg>` element; without `titled` the title is for screen readers only."""
    if picture.bars is not None:
        return _bars(picture, width, titled)
    body = (
        _heat_body(picture, width, height) if picture.heat else _line_body(picture, width, height)
    )
    return _frame(picture.title, width, height, body, titled)


def plot_of(picture: Picture, width: int = _WIDTH, height: int = _HEIGHT) -> dict[str, float]:
    """Where the curves of `svg` are drawn: the edges in the picture's units, and the steps at them."""
    x0, x1, _, _ = bounds(picture)
    bottom = height - _BOTTOM - 16 * len(_legend(picture, width))
    return {"width": width, "left": _LEFT, "right": width - _RIGHT, "top": _TOP, "bottom": bottom,
            "x0": float(x0), "x1": float(x1)}  # fmt: skip


def svg_file(pictures: Sequence[Picture]) -> bytes:
    """A file of one picture, or of several in two columns, on white."""
    columns = min(2, len(pictures))
    drawn = [svg(picture, _WIDTH, _HEIGHT) for picture in pictures]
    heights = [float(one.split('viewBox="0 0 ')[1].split('"')[0].split()[1]) for one in drawn]
    parts, y = [], 0.0
    for first in range(0, len(drawn), columns):
        for column, one in enumerate(drawn[first : first + columns]):
            size = f'x="{column * _WIDTH}" y="{y:g}" width="{_WIDTH}" height="{heights[first + column]:g}"'
            parts.append(one.replace("<svg ", f"<svg {size} ", 1))
        y += max(heights[first : first + columns])
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * _WIDTH} {y:g}">{ground}'
        f"{''.join(parts)}</svg>\n"
    ).encode()


def _frame(title: str, width: float, height: float, body: Sequence[str], titled: bool) -> str:
    """The element around what is drawn, with its title for those who cannot see it."""
    top = text(_LEFT, 17, title, weight=700, size=13.5, colour=INK) if titled else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label={quoteattr(title)} font-family="{FONTS}" font-size="11.5">'
        f"{top}{''.join(body)}</svg>"
    )


def text(
    x: float, y: float, words: str, *, anchor: str = "start", colour: str = SOFT,
    weight: int = 400, size: float = 0,
) -> str:  # fmt: skip
    """A `<text>` element."""
    sized = f' font-size="{size:g}"' if size else ""
    heavy = f' font-weight="{weight}"' if weight != 400 else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{sized}{heavy}>'
        f"{escape(words)}</text>"
    )


def _line_body(picture: Picture, width: int, height: int) -> list[str]:
    legend_rows = _legend(picture, width)
    bottom = _BOTTOM + 16 * len(legend_rows)
    x_low, x_high, y_low, y_high = bounds(picture)
    inner_w, inner_h = width - _LEFT - _RIGHT, height - _TOP - bottom
    log = picture.scale == "log"
    if log:
        y_low, y_high = math.log10(y_low), math.log10(y_high)

    def px(x: float) -> float:
        return _LEFT + inner_w * (x - x_low) / (x_high - x_low)

    def py(y: float) -> float:
        return _TOP + inner_h * (1 - (y - y_low) / (y_high - y_low))

    parts = []
    at = ticks(y_low, y_high)
    for tick, label in zip(at, labels([10**t if log else t for t in at]), strict=True):
        parts.append(_rule(_LEFT, py(tick), width - _RIGHT, py(tick)))
        parts.append(text(_LEFT - 6, py(tick) + 4, label, anchor="end"))
    parts += _x_axis(picture, x_low, x_high, px, height - bottom)
    for mark in picture.marks:
        if x_low <= mark.x <= x_high:
            parts.append(
                f'<path d="M{px(mark.x):.1f} {_TOP}V{height - bottom}" stroke="{SOFT}" '
                f'stroke-dasharray="3 3"><title>{escape(mark.name)}</title></path>'
            )
    for place, line in enumerate(picture.lines):
        parts.append(_curve(line, place, px, lambda y: py(np.clip(y, y_low, y_high)), log))
        parts += _outside(line, place, px, (_TOP, height - bottom), bounds(picture)[2:])
    for row, entries in enumerate(legend_rows):
        y = height - 8 - 16 * (len(legend_rows) - 1 - row)
        parts += [_legend_entry(x, y, line, place) for x, line, place in entries]
    return parts


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{LINE}"/>'


def _x_axis(picture: Picture, low: float, high: float, px: _Axis, bottom: float) -> list[str]:
    at = ticks(low, high, 7)
    edge = (
        px(high) + _RIGHT
    )  # of the picture, beyond which the half of a long number would be cut off
    parts = [
        text(min(px(t), edge - _HALF_DIGIT * len(label)), bottom + 16, label, anchor="middle")
        for t, label in zip(at, labels(at), strict=True)
    ]
    return [*parts, text(px(high), bottom + 31, picture.x, anchor="end")]


def _curve(line: Line, place: int, px: _Axis, py: _Axis, log: bool) -> str:
    colour, dash = style(line, place)
    y = np.asarray(line.y, np.float64)
    ok = np.isfinite(y) & ((y > 0) if log else True)
    y = np.log10(np.where(ok, y, 1.0)) if log else y
    xs, ys = px(np.asarray(line.x, np.float64)), py(y)
    if line.dots:
        dots = [
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.2"/>'
            for a, b in zip(xs[ok], ys[ok], strict=True)
        ]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(xs[ok], ys[ok], strict=True))
        joined = f'<path d="{path}" fill="none" stroke="{colour}" stroke-opacity=".5"/>'
        return f'{joined if ok.any() else ""}<g fill="{colour}" stroke="#fff">{"".join(dots)}</g>'
    band = ""
    if line.low is not None and line.high is not None:
        low, high = (np.asarray(v, np.float64) for v in (line.low, line.high))
        ok_band = np.isfinite(low) & np.isfinite(high) & ((low > 0) if log else True)
        ends = [np.log10(np.where(ok_band, v, 1.0)) if log else v for v in (low, high)]
        there = zip(xs[ok_band], py(ends[1])[ok_band], strict=True)
        back = zip(xs[ok_band][::-1], py(ends[0])[ok_band][::-1], strict=True)
        points = "L".join(f"{a:.1f} {b:.1f}" for a, b in (*there, *back))
        band = f'<path d="M{points}Z" fill="{colour}" fill-opacity=".22"/>' if points else ""
    steps, pen = [], False
    for good, a, b in zip(ok, xs, ys, strict=True):
        if good:
            steps.append(f"{'L' if pen else 'M'}{a:.1f} {b:.1f}")
        pen = bool(good)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return band + (
        f'<path d="{"".join(steps)}" fill="none" stroke="{colour}" stroke-width="1.6" '
        f'stroke-linejoin="round"{dashed}/>'
    )


def _outside(
    line: Line, place: int, px: _Axis, edges: tuple[float, float], ends: tuple[float, ...]
) -> list[str]:
    """Arrows at the edges where values are beyond them, each with its value for who points at it."""
    highest = line.y if line.high is None else line.high
    lowest = line.y if line.low is None else line.low
    over, under = highest > ends[1], lowest < ends[0]
    found = [(x, edges[0], 6, value) for x, value in zip(line.x[over], highest[over], strict=True)]
    found += [(x, edges[1], -6, v) for x, v in zip(line.x[under], lowest[under], strict=True)]
    return [
        f'<path d="M{px(x) - 4:.1f} {edge + step}h8l-4 {-step}Z" fill="{style(line, place)[0]}">'
        f"<title>{number(value)}</title></path>"
        for x, edge, step, value in found
    ]


def _legend(picture: Picture, width: int) -> list[list[tuple[float, Line, int]]]:
    """Rows of (x, line, its place in the picture); none for a single line."""
    if len(picture.lines) < 2:
        return []
    rows: list[list[tuple[float, Line, int]]] = [[]]
    x = float(_LEFT)
    for place, line in enumerate(picture.lines):
        size = 42 + _width(line.name)
        if x + size > width and rows[-1]:
            rows.append([])
            x = float(_LEFT)
        rows[-1].append((x, line, place))
        x += size
    return rows


def _legend_entry(x: float, y: float, line: Line, place: int) -> str:
    colour, dash = style(line, place)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    sign = f'<path d="M{x:.1f} {y - 4:.1f}h20" stroke="{colour}" stroke-width="2"{dashed}/>'
    if line.dots:
        sign = f'<circle cx="{x + 10:.1f}" cy="{y - 4:.1f}" r="3.2" fill="{colour}"/>'
    return sign + text(x + 25, y, line.name, colour=INK)


def _bars(picture: Picture, width: int, titled: bool) -> str:
    """Horizontal bars from zero, groups below each other, as long as there is room for."""
    bars = picture.bars
    assert bars is not None
    left = max([40.0, *(_width(name) + 12 for name in bars.groups)])
    thick, gap = 13, 12
    each = thick * len(bars.series) + gap
    height = _TOP + each * len(bars.groups) + (26 if len(bars.series) > 1 else 8)
    values = np.array([list(numbers) for _, numbers in bars.series], np.float64)
    errors = (
        np.array([list(e) for e in bars.errors], np.float64)
        if len(bars.errors)
        else np.zeros_like(values)
    )
    low = float(np.nanmin(values - errors, initial=0.0))
    high = float(np.nanmax(values + errors, initial=1e-30 - low))
    begin, end = left + (48 if low < 0 else 0), width - 70  # numbers stand at the ends of the bars

    def px(value: float) -> float:
        return begin + (end - begin) * (value - low) / (high - low)

    parts = []
    for group, name in enumerate(bars.groups):
        y0 = _TOP + each * group
        parts.append(
            text(left - 8, y0 + thick * len(bars.series) / 2 + 4, name, anchor="end", colour=INK)
        )
        for place in range(len(bars.series)):
            value, error = values[place, group], errors[place, group]
            if not np.isfinite(value):
                continue
            y, x = y0 + thick * place, px(min(value, 0.0))
            colour = COLOURS[place % len(COLOURS)]
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(1.0, px(max(value, 0.0)) - x):.1f}" '
                f'height="{thick - 2}" rx="2" fill="{colour}"/>'
            )
            if error > 0:
                middle = y + thick / 2 - 1
                parts.append(
                    f'<path d="M{px(value - error):.1f} {middle:.1f}H{px(value + error):.1f}" '
                    f'stroke="{INK}" stroke-width="1.5"/>'
                )
            away, anchor = (-5, "end") if value < 0 else (5, "start")
            tip = value - max(error, 0.0) if value < 0 else value + max(error, 0.0)
            parts.append(text(px(tip) + away, y + thick - 3, number(value), anchor=anchor, size=11))
    if low < 0:
        bottom = _TOP + each * len(bars.groups) - gap / 2
        parts.append(f'<path d="M{px(0.0):.1f} {_TOP - 4}V{bottom:.1f}" stroke="{SOFT}"/>')
    if len(bars.series) > 1:
        x = left
        for place, (name, _) in enumerate(bars.series):
            colour = COLOURS[place % len(COLOURS)]
            parts.append(
                f'<rect x="{x:.1f}" y="{height - 17}" width="11" height="11" rx="2" fill="{colour}"/>'
            )
            parts.append(text(x + 16, height - 7, name, colour=INK))
            x += 32 + _width(name)
    return _frame(picture.title, width, height, parts, titled)


def _width(words: str) -> float:
    """About how wide a text is; Hangul is as wide as it is high."""
    return sum(11.5 if ord(c) > 0x2E80 else 6.4 for c in words)


def _heat_body(picture: Picture, width: int, height: int) -> list[str]:
    heat = picture.heat
    assert heat is not None
    rows = heat.values.shape[0]
    inner_w, inner_h = width - _LEFT - _RIGHT - 46, height - _TOP - _BOTTOM

    def px(x: float) -> float:
        return _LEFT + inner_w * (x - heat.first) / ((heat.last - heat.first) or 1)

    parts = [_image(heat_colours(heat.values, heat.top), _LEFT, _TOP, inner_w, inner_h)]
    every = max(1, -(-rows // 16))
    for row in range(0, rows, every):
        parts.append(
            text(_LEFT - 6, _TOP + inner_h * (row + 0.5) / rows + 4, str(row), anchor="end")
        )
    parts += _x_axis(picture, heat.first, heat.last, px, height - _BOTTOM)
    scale = heat_colours(np.linspace(1, 0, 64)[:, None], 1.0)
    right = width - _RIGHT - 34
    parts.append(_image(scale, right, _TOP, 10, inner_h))
    for share in (0.0, 0.5, 1.0):
        parts.append(text(right + 14, _TOP + inner_h * (1 - share) + 4, number(share * heat.top)))
    parts.append(text(_LEFT - 6, _TOP - 6, picture.y, anchor="end"))
    return parts


def _image(pixels: np.ndarray, x: float, y: float, width: float, height: float) -> str:
    data = base64.b64encode(png_bytes(pixels)).decode()
    return (
        f'<image x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
    )


def save(pictures: Picture | Sequence[Picture], path: str | Path, option: str = "") -> None:
    """Writes one picture, or several side by side; the ending of `path` says whether as .svg or .png.

    `option` is the flag with which a person gave the path, for messages.

    Raises:
      UserError: for another ending, a place that cannot be written to, or a PNG without what draws it.
    """
    place = Path(path)
    given = f"{option}={place}" if option else f"{place}"
    listed = [pictures] if isinstance(pictures, Picture) else list(pictures)
    if place.suffix == ".png":
        from kcmoe.io.drawing_png import png

        content = png(listed)
    elif place.suffix == ".svg":
        content = svg_file(listed)
    else:
        raise UserError(f"{given} is no picture that can be written; end its name in .svg or .png")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    except OSError as error:
        raise UserError(f"{given} cannot be written: {error.strerror}") from None
