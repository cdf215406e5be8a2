# SPDX-License-Identifier: Apache-2.0
"""Pictures: valid SVG, round numbers on axes, gaps where values lack, Hangul in PNG or a word about it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import numpy as np
import pytest

from kcmoe.errors import UserError
from kcmoe.io.drawing import (
    COLOURS,
    Bars,
    Heat,
    Line,
    Mark,
    Picture,
    bounds,
    heat_colours,
    histogram,
    labels,
    number,
    ticks,
)
from kcmoe.io.drawing_svg import save, svg
from kcmoe.io.png_file import png_bytes

X = np.arange(5.0)
PICTURES = [
    Picture("lines", "손실 <&>", "step", "y", lines=[Line("훈련", X, X), Line("eval", X, X**2, dots=True)],
            marks=[Mark(2, "restart")]),
    Picture("gap", "gap", lines=[Line("a", X, np.array([1, np.nan, 2, np.inf, 3]))], scale="log"),
    Picture("nothing", "nothing", lines=[Line("a", np.zeros(0), np.zeros(0))]),
    Picture("flat", "flat", lines=[Line("a", X[:1], X[:1])]),
    Picture("band", "band", lines=[Line("a", X, X, low=X - 1, high=X + 1)]),
    Picture("heat", "몫", "step", "expert", heat=Heat(np.array([[0.1, np.nan], [0.5, 1.0]]), 0, 2, 1.0)),
    Picture("bars", "과제", bars=Bars(["nsmc", "한국어 과제"], [("우리", [0.9, np.nan]), ("n", [0.8, 0.5])],
                                   [[0.01, 0.0], [0.0, 0.0]])),
]  # fmt: skip


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.name)
def test_svg_is_well_formed_and_has_its_title(picture: Picture) -> None:
    drawn = svg(picture)
    assert ET.fromstring(drawn).get("aria-label") == picture.title
    attributes = " ".join(
        value for node in ET.fromstring(drawn).iter() for value in node.attrib.values()
    )
    assert not {"nan", "inf"} & set(attributes.replace("L", " ").replace("M", " ").split())


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.name)
def test_png_has_hangul_or_says_what_lacks(picture: Picture, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    try:
        save(picture, tmp_path / "a.png")
    except UserError as error:
        pytest.skip(str(error))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_rare_peak_presses_nothing_flat_and_is_marked() -> None:
    steps = np.arange(1000.0)
    loss = 2 + 8 * np.exp(-steps / 80)
    high = loss + 0.1
    high[654] = 99.0
    usual = Picture("a", "a", lines=[Line("loss", steps, loss, loss - 0.1, loss + 0.1)])
    peak = Picture("a", "a", lines=[Line("loss", steps, loss, loss - 0.1, high)])
    assert bounds(peak)[3] < 12
    assert "<title>99</title>" in svg(peak) and "<title>" not in svg(usual)
    assert bounds(usual)[3] > 10  # what only begins high is no rare peak
    twice = Picture("a", "a", lines=[Line("loss", steps, np.where(steps > 500, 90.0, 2.0))])
    assert bounds(twice)[3] > 90


def test_no_number_of_an_axis_is_cut_off() -> None:
    line = Line("a", np.array([1.0, 1000.0]), np.array([0.0, 1.0]))
    drawn = svg(Picture("a", "a", lines=[line]))
    found = re.findall(r'<text x="([\d.]+)"[^>]*"middle"[^>]*>([\d,]+)<', drawn)
    ends = {label: float(x) + 3.5 * len(label) for x, label in found}  # digits are up to 7 wide
    assert ends["1,000"] == max(ends.values()) <= 640


def test_bars_below_zero_go_the_other_way() -> None:
    bars = Bars(["klue_sts", "nsmc"], [("ours", [-0.2, 0.8])], [[0.05, 0.0]])
    root = ET.fromstring(svg(Picture("signs", "signs", bars=bars)))
    boxes = [
        {k: float(node.attrib[k]) for k in ("x", "width")}
        for node in root.iter("{http://www.w3.org/2000/svg}rect")
    ]
    below, above = boxes
    assert below["x"] + below["width"] == pytest.approx(above["x"], abs=0.2)  # both begin at zero
    assert above["width"] / below["width"] == pytest.approx(4, rel=0.01)
    places = [
        (node.text, float(node.attrib["x"]))
        for node in root.iter("{http://www.w3.org/2000/svg}text")
    ]
    assert dict(places)["-0.2"] < below["x"]


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.svg or \.png"):
        save(PICTURES[0], tmp_path / "a.gif")
    save(PICTURES[0], tmp_path / "new/a.svg")
    assert ET.parse(tmp_path / "new/a.svg").getroot().tag.endswith("svg")


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.13, 0.87) == [0.2, 0.4, 0.6, 0.8]
    assert ticks(5, 5) == [5]
    assert ticks(0, 1_000_000, 2) == [0, 500_000, 1_000_000]
    shown = [number(value) for value in (0, 0.5, 1500, 25_000, 2.5e6, 0.00001)]
    assert shown == ["0", "0.5", "1,500", "25k", "2.5M", "1e-5"]
    assert labels([2.010, 2.0125, 2.015]) == ["2.01", "2.0125", "2.015"]


def test_heat_is_darkest_at_nothing_and_clear_where_unknown() -> None:
    colours = heat_colours(np.array([[0.0, 0.5, 1.0, 2.0, np.nan]]), 1.0)[0].astype(int)
    brightness = colours[:, :3].sum(axis=1)
    assert brightness[0] < brightness[1] < brightness[2] == brightness[3]
    assert list(colours[:, 3]) == [255, 255, 255, 255, 0]


def test_own_png_is_read_back() -> None:
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    content = png_bytes(pixels)
    begin = content.index(b"IDAT") + 4
    size = int.from_bytes(content[begin - 8 : begin - 4], "big")
    rows = np.frombuffer(zlib.decompress(content[begin : begin + size]), np.uint8).reshape(2, 13)
    np.testing.assert_array_equal(rows[:, 1:].reshape(2, 3, 4), pixels)


def test_colours_differ_for_every_colour_vision() -> None:
    """Also after the commonest kinds of colour-blindness (Machado et al., 2009, severity 1.0)."""
    kinds = {
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    }
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLOURS[:6]])
    for matrix in kinds.values():
        seen = np.clip(rgb**2.2 @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(len(seen))
        assert distance.min() > 0.12


def test_histogram() -> None:
    x, y = histogram(np.array([1, 1, 2.5, 5]), bins=4)
    assert y.sum() == 8
    assert (x[0], x[-1]) == (1, 5)


def test_several_pictures_share_a_file(tmp_path: Path) -> None:
    save(PICTURES, tmp_path / "all.svg")
    root = ET.parse(tmp_path / "all.svg").getroot()
    assert sum(node.tag.endswith("svg") for node in root) == len(PICTURES)


@pytest.mark.parametrize("span", [1, 44, 60, 61, 1000])
def test_a_histogram_of_whole_numbers_has_no_gaps(span: int) -> None:
    x, y = histogram(np.repeat(np.arange(20, 20 + span), 3))
    widths = np.diff(x[::2])
    assert len(x) <= 2 * 63
    assert (widths == np.round(widths)).all()
    inner = y[y > 0]
    assert y[0] == y[-1] == 0 < len(inner)
    assert len(set(inner[:-2])) <= 1  # all are equally frequent; the last bin may be less than full
    assert y[::2].sum() == 3 * span
