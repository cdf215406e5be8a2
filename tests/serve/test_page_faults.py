# SPDX-License-Identifier: Apache-2.0
"""The page where something is wrong or too much, and what it says and looks like, in a real browser.

Needs `pip install playwright` and a Chromium (apt-get install chromium); KCMOE_CHROMIUM names another one.
"""

from __future__ import annotations

import contextlib
import re
from importlib import resources
from typing import Any

import pytest

# Playwright's own event loop leaves sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def test_errors_are_shown_as_text(open_page: Any) -> None:
    page = open_page()
    error = {"status": 422, "what": "<b>그런 과제는 없습니다</b>", "where": "task", "mend": "nsmc"}
    page.route("**/v1/classify", lambda route: route.fulfill(status=422, json={"error": error}))
    page.fill("#label-text-0", "좋다")
    page.click("#label-form .primary")
    page.wait_for_selector("#label-status .bad")
    assert "<b>" in page.inner_text("#label-status .bad")
    assert "서버가 이 요청을 들어줄 수 없습니다" in page.inner_text("#label-status .bad")
    page.unroute("**/v1/classify")
    page.route("**/v1/classify", lambda route: route.fulfill(status=200, body='{"predictions": ['))
    page.click("#label-form .primary")
    page.wait_for_selector("text=중간에 끊겼습니다")


def test_waiting_for_a_busy_server_can_be_stopped(open_page: Any) -> None:
    page = open_page()
    busy = {"status": 429, "what": "full", "where": "server", "mend": "wait", "retry_after_s": 600}
    page.route("**/v1/classify", lambda route: route.fulfill(status=429, json={"error": busy}))
    page.fill("#label-text-0", "좋다")
    page.click("#label-form .primary")
    page.wait_for_selector("text=600초 뒤에")
    page.click("#label-status button")
    page.wait_for_selector("#label-status :text('멈췄습니다')", timeout=5000)


def test_a_text_longer_than_the_server_takes_is_cut_and_that_is_said(open_page: Any) -> None:
    page = open_page()
    long = "가나 " * 7000
    page.fill("#label-text-0", f"좋다\n{long}")
    page.click("#label-form .primary")
    page.wait_for_selector("#label-table")
    assert "글이 21,000자로" in page.get_attribute("#label-table .badge", "title")
    page.fill("#label-text-0", long)
    page.click("#label-form .primary")
    page.wait_for_selector("#label-result .quote del")
    page.click("#tab-fill")
    page.fill("#fill-text", f"<extra_id_0> {long}")
    page.select_option("#fill-tokens", "8")
    page.click("#fill-form .primary")
    page.wait_for_selector("#fill-result .notice")
    page.click("#tab-experts")
    page.fill("#experts-text", "가" + " " * 20_000 + "끝")  # blanks alone are no tokens
    page.click("#experts-form .primary")
    page.wait_for_selector("#experts-result .notice")
    assert "글이 20,002자로" in page.inner_text("#experts-result .notice")


def test_what_was_typed_outlives_a_reload_and_the_way_back(open_page: Any, server: Any) -> None:
    page = open_page()
    page.fill("#label-text-0", "남는 글")
    page.click("#tab-fill")
    page.fill("#fill-text", "남는 <extra_id_0>")
    page.go_back()
    assert page.is_visible("#label") and page.url.startswith(server.address)
    page.goto(server.address + "/openapi.json")
    page.go_back()
    page.wait_for_selector("html[data-ready]")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.input_value("#label-text-0") == "남는 글"
    assert page.input_value("#fill-text") == "남는 <extra_id_0>"
    page.fill("#label-text-0", "")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.input_value("#label-text-0") == ""


def test_the_map_is_that_of_the_newest_text(open_page: Any) -> None:
    page = open_page("/#experts")
    held: list[Any] = []
    page.route("**/v1/experts", lambda route: held.append(route))
    page.fill("#experts-text", "느린 글")
    page.click("#experts-form .primary")
    page.unroute("**/v1/experts")
    page.fill("#experts-text", "빠른")
    page.click("#experts-form .primary")
    page.wait_for_selector(".piece")
    map_of_newest = page.inner_text("#experts-result")
    for route in held:
        with contextlib.suppress(Exception):  # the page has given it up
            route.continue_()
    page.wait_for_timeout(500)
    assert page.inner_text("#experts-result") == map_of_newest
    page.route("**/v1/experts", lambda route: route.abort())
    page.click("#experts-form .primary")
    page.wait_for_selector("#experts-status .bad")
    assert page.locator(".piece").count() == 0


# In the page: the contrast of letters and ground of an element, as WCAG defines it.
_CONTRAST = """cell => {
  const shade = (colour) => {
    const context = document.createElement("canvas").getContext("2d");
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const style = getComputedStyle(cell), pair = [shade(style.color), shade(style.backgroundColor)];
  return Math.max(...pair) / Math.min(...pair);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_on_the_colours_of_the_map_are_legible(open_page: Any, scheme: str) -> None:
    weights = [[n / 40] for n in range(41)]
    layer = {"layer": "encoder/layers_1", "chosen": [[7]] * 41, "weights": weights,
             "entropy": [0.5] * 41, "dropped": [[False]] * 41}  # fmt: skip
    capacity = {"rows": 1, "tokens": 41, "groups": 1, "places_per_expert": 2}
    drawn = {"num_experts": 8, "pieces": [{"piece": "가", "text": "가", "prompt": False}] * 41,
             "layers": [layer], "capacity": capacity}  # fmt: skip
    page = open_page("/#experts", color_scheme=scheme)
    page.route("**/v1/experts", lambda route: route.fulfill(json=drawn))
    page.fill("#experts-text", "가")
    page.click("#experts-form .primary")
    page.wait_for_selector(".piece")
    cells = page.locator(".piece .cell").element_handles()
    assert len(cells) == 41
    assert min(cell.evaluate(_CONTRAST) for cell in cells) >= 4.5


def test_everything_the_page_says_is_said_in_both_languages_and_used() -> None:
    folder = resources.files("kcmoe.serve") / "page"
    files = {one.name: one.read_text("utf-8") for one in folder.iterdir() if one.is_file()}
    ko, en = (
        set(re.findall(r'[\s,]([a-z]\w*): "', part))
        for part in files["words.js"].split("const EXAMPLES")[0].split("\n  en: {")
    )
    assert {key for key in ko ^ en if not key.startswith("status_")} == set()
    others = "".join(text for name, text in files.items() if name != "words.js")
    composed = ("theme", "which", "column_", "status_", "otherLanguage")
    unused = {key for key in ko if f'"{key}"' not in others and not key.startswith(composed)}
    assert not unused - {"number", "text", "label", "probability", "tokens"}  # columns of the table
