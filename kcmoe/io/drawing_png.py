# SPDX-License-Identifier: Apache-2.0
"""Pictures as PNG, drawn by matplotlib in the same look, in a font that has Hangul if one is needed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from kcmoe.errors import UserError
from kcmoe.io.drawing import COLOURS, HEAT, INK, LINE, SOFT, Picture, bounds, number, style

_KOREAN = (
    "Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Nanum Gothic", "Malgun Gothic", "AppleGothic",
    "Apple SD Gothic Neo", "UnDotum", "Baekmuk Gulim", "NanumBarunGothic", "Noto Sans CJK JP", "Pretendard",
)  # fmt: skip
_DOTS_PER_INCH = 150
_WIDTH = 6.4  # inches


def png(pictures: Sequence[Picture]) -> bytes:
    """The content of a PNG file of one picture, or of several in two columns.

    Raises:
      UserError: if matplotlib is missing, or no font of this machine has a character of the pictures.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "PNG needs matplotlib: pip install matplotlib; or write .svg, which needs nothing"
        ) from None
    settings: Any = {
        "font.family": _fonts(pictures), "axes.unicode_minus": False, "font.size": 8,
        "axes.edgecolor": LINE, "xtick.color": SOFT, "ytick.color": SOFT, "axes.labelcolor": SOFT,
    }  # fmt: skip
    columns = min(2, len(pictures))
    rows = -(-len(pictures) // columns)
    height = max(map(_height, pictures))
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH * columns, height * rows), layout="constrained")
        places = figure.subplots(rows, columns, squeeze=False).flat
        for axes in places[len(pictures) :]:
            axes.set_visible(False)
        for picture, axes in zip(pictures, places, strict=False):
            _draw(picture, figure, axes)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()


def _height(picture: Picture) -> float:
    """Inches."""
    if picture.bars is None:
        return 2.8
    return 0.7 + 0.12 * len(picture.bars.groups) * (1 + len(picture.bars.series))


def _draw(picture: Picture, figure: Any, axes: Any) -> None:
    axes.set_title(picture.title, loc="left", fontsize=9.5, fontweight="bold", color=INK)
    axes.set_xlabel(picture.x)
    axes.set_ylabel(picture.y)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    if picture.heat is not None:
        _heat(picture, figure, axes)
    elif picture.bars is not None:
        _bars(picture, axes)
    else:
        _lines(picture, axes)


def _fonts(pictures: Sequence[Picture]) -> list[str]:
    """Fonts to try in turn; one of them has every character of the pictures."""
    from matplotlib import font_manager

    words = []
    for picture in pictures:
        words += [picture.title, picture.x, picture.y]
        words += [line.name for line in picture.lines] + [mark.name for mark in picture.marks]
        if picture.bars is not None:
            words += [*picture.bars.groups, *(name for name, _ in picture.bars.series)]
    plain = ["DejaVu Sans"]
    if all(ord(c) < 0x2E80 for c in "".join(words)):
        return plain
    found = _installed(font_manager)
    if not found:
        raise UserError(
            "no font of this machine has Hangul, so a PNG would show boxes: install one (Debian: "
            "apt-get install fonts-nanum), or write .svg"
        )
    return [found[0], *plain]


def _installed(font_manager: Any) -> list[str]:
    """Korean fonts, those too that came after matplotlib last looked."""
    manager = font_manager.fontManager
    known = {font.name for font in manager.ttflist}
    found = [name for name in _KOREAN if name in known]
    if found:
        return found
    short = [name.replace(" ", "").lower() for name in _KOREAN]
    for path in font_manager.findSystemFonts():
        stem = path.replace("-", "").replace("_", "").rsplit("/", 1)[-1].lower()
        if any(stem.startswith(name) for name in (*short, "notosanscjk")):
            with contextlib.suppress(OSError, RuntimeError):
                manager.addfont(path)
    known = {font.name for font in manager.ttflist}
    return [name for name in _KOREAN if name in known]


def _formatted(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _lines(picture: Picture, axes: Any) -> None:
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    if picture.scale == "log":
        axes.set_yscale("log")
    for place, line in enumerate(picture.lines):
        colour, dash = style(line, place)
        pattern = (0, tuple(float(n) * 0.7 for n in dash.split())) if dash else "-"
        if line.dots:
            axes.plot(
                line.x, line.y, "o-", color=colour, label=line.name, markersize=3.2, linewidth=0.8
            )
        else:
            axes.plot(
                line.x, line.y, color=colour, linestyle=pattern, label=line.name, linewidth=1.2
            )
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.22, linewidth=0)
    for mark in picture.marks:
        axes.axvline(mark.x, color=SOFT, linestyle=(0, (2, 2)), linewidth=0.8)
    if len(picture.lines) > 1:
        axes.legend(frameon=False, ncols=min(4, len(picture.lines)), fontsize=7.5)
    _formatted(axes.xaxis)
    if picture.scale == "linear":
        axes.set_ylim(*bounds(picture)[2:])
        _formatted(axes.yaxis)


def _heat(picture: Picture, figure: Any, axes: Any) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    heat = picture.heat
    assert heat is not None
    colours = LinearSegmentedColormap.from_list("kcmoe", np.array(HEAT) / 255.0)
    extent = (heat.first, heat.last, len(heat.values) - 0.5, -0.5)
    image = axes.imshow(
        heat.values, cmap=colours, vmin=0, vmax=heat.top, aspect="auto", extent=extent,
        interpolation="nearest",
    )  # fmt: skip
    figure.colorbar(image, ax=axes, pad=0.01).outline.set_visible(False)
    _formatted(axes.xaxis)


def _bars(picture: Picture, axes: Any) -> None:
    bars = picture.bars
    assert bars is not None
    size = 0.8 / max(1, len(bars.series))
    for place, (name, values) in enumerate(bars.series):
        at = np.arange(len(bars.groups)) + (place - (len(bars.series) - 1) / 2) * size
        errors = bars.errors[place] if len(bars.errors) else None
        drawn = axes.barh(at, values, size * 0.9, xerr=errors, color=COLOURS[place % len(COLOURS)],
                          label=name, error_kw={"elinewidth": 1, "ecolor": INK})  # fmt: skip
        axes.bar_label(
            drawn, [number(v) if np.isfinite(v) else "" for v in values], padding=3, fontsize=7
        )
    axes.set_yticks(np.arange(len(bars.groups)), bars.groups, color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xticks([])
    if len(bars.series) > 1:
        axes.legend(frameon=False, fontsize=7.5)
