# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: typed into, clicked, by keyboard alone, narrow, dark, and without complaints.

Needs `pip install playwright` and a Chromium (apt-get install chromium); KCMOE_CHROMIUM names another one.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

# Playwright's own event loop leaves sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def test_one_line_gets_a_label_with_bars(open_page: Any) -> None:
    page = open_page()
    page.fill("#label-text-0", "정말 재미있다")
    page.click("#label-form .primary")
    assert page.inner_text("#label-result .big") in ("긍정적", "부정적")
    shares = [float(t.rstrip("%")) for t in page.locator(".answer-number").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.02)
    assert "초" in page.inner_text("#label-result .timing")


def test_several_lines_become_a_table_that_sorts_and_saves(open_page: Any, tmp_path: Path) -> None:
    page = open_page()
    texts = ["좋다", '따옴표 "안" 쉼표, 끝', "<img src=x onerror=alert(1)>", "나쁘다 " * 200]
    page.fill("#label-text-0", "\n".join(texts))
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#label-table")
    assert page.locator("#label-table td.c-text").all_inner_texts()[:3] == texts[:3]
    assert page.locator("#label-table img").count() == 0
    assert page.locator("#label-table .badge").count() == 1
    page.click("#sort-probability")
    page.click("#sort-probability")
    assert page.locator("th.c-probability").get_attribute("aria-sort") == "descending"
    shares = [float(t.rstrip("%")) for t in page.locator("td.c-probability").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    with page.expect_download() as download:
        page.click("#label-save")
    saved = tmp_path / "saved.csv"
    download.value.save_as(saved)
    content = saved.read_text("utf-8-sig")
    assert '"따옴표 ""안"" 쉼표, 끝"' in content
    assert content.splitlines()[0].startswith("document,label,p(부정적)")


def test_a_csv_in_cp949_is_read(open_page: Any, tmp_path: Path) -> None:
    file = tmp_path / "글.csv"
    file.write_bytes('id,document\r\n1,"좋다, 아주"\r\n2,나쁘다\r\n'.encode("cp949"))
    page = open_page()
    page.set_input_files("#label-file", str(file))
    page.wait_for_selector(".file")
    assert "CP949" in page.inner_text("#label-status")
    page.click("#label-form .primary")
    page.wait_for_selector("#label-table")
    assert page.locator("td.c-text").all_inner_texts() == ["좋다, 아주", "나쁘다"]


def test_the_saved_table_of_a_file_has_its_columns(open_page: Any, tmp_path: Path) -> None:
    page = open_page()
    content = 'id,document,label\n7,"좋다, ""아주""",1\n8,나쁘다,0\n'.encode()
    page.set_input_files("#label-file", {"name": "a.csv", "mimeType": "", "buffer": content})
    page.wait_for_selector(".file")
    page.click("#label-form .primary")
    page.wait_for_selector("#label-table")
    page.click("#sort-number")
    with page.expect_download() as download:
        page.click("#label-save")
    download.value.save_as(tmp_path / "saved.csv")
    head, last, first = csv.reader((tmp_path / "saved.csv").open(encoding="utf-8-sig", newline=""))
    assert head[:5] == ["id", "document", "label", "kcmoe_label", "kcmoe_p(부정적)"]
    assert [first[:3], last[:3]] == [["7", '좋다, "아주"', "1"], ["8", "나쁘다", "0"]]
    assert {first[3], last[3]} <= {"긍정적", "부정적"}


def test_files_are_read_as_their_programs_wrote_them(open_page: Any) -> None:
    page = open_page()

    def opened(name: str, content: bytes) -> str:
        file = {"name": name, "mimeType": "text/plain", "buffer": content}
        page.set_input_files("#label-file", file)
        page.wait_for_function(
            "name => document.querySelector('#label-status').innerText.includes(name)", arg=name
        )
        card = page.locator(".file p").first
        said: str = page.inner_text("#label-status") + (card.inner_text() if card.count() else "")
        return said

    assert "3번째 줄에서 연 따옴표" in opened(
        "open.csv", 'id,document\n1,좋다\n2,"나쁘다\n'.encode()
    )
    nsmc = 'id\tdocument\tlabel\n1\t"좋다 정말\t1\n2\t나쁘다" 흥\t0\n'.encode()
    assert "2줄 · 3열" in opened("ratings.txt", nsmc)
    assert "1줄 · 2열" in opened("excel.txt", "id\tdocument\r\n1\t좋다\r\n".encode("utf-16"))
    assert "2줄 · 2열" in opened("old.csv", "id,document\r1,좋다\r2,나쁘다\r".encode())
    many = "id,document\n" + "1,a\n" * 300_000
    assert "300,000줄 · 2열" in opened("many.csv", many.encode())


def test_a_file_may_be_dropped_anywhere(open_page: Any) -> None:
    page = open_page()
    dropped = page.evaluate_handle(
        """text => {
          const data = new DataTransfer();
          data.items.add(new File([text], "리뷰.csv", {type: "text/csv"}));
          return data;
        }""",
        'id,리뷰\n1,"좋다, 아주"\n2,나쁘다\n',
    )
    page.dispatch_event("footer", "dragenter", {"dataTransfer": dropped})
    assert page.locator("#label.dropping").count() == 1
    page.dispatch_event("footer", "drop", {"dataTransfer": dropped})
    page.wait_for_selector(".file")
    assert "리뷰.csv" in page.inner_text(".file")
    assert page.locator("#label.dropping").count() == 0


def test_selected_words_are_hidden_and_filled(open_page: Any) -> None:
    page = open_page("/#fill")
    page.fill("#fill-text", "오늘 날씨가 정말 좋다")
    page.eval_on_selector("#fill-text", "area => area.setSelectionRange(3, 7)")
    page.click("#fill-hide")
    assert page.input_value("#fill-text") == "오늘 <extra_id_0> 정말 좋다"
    page.select_option("#fill-tokens", "8")
    page.click("#fill-form .primary")
    page.wait_for_selector("#fill-result li")
    assert re.search(r"확률 [\d.]+", page.inner_text("#fill-result"))
    page.fill("#fill-text", "<extra_id_100> 좋다")
    page.click("#fill-form .primary")
    assert "<extra_id_99>까지" in page.inner_text("#fill-status")
    page.fill("#fill-text", "빈칸 없음")
    page.click("#fill-form .primary")
    assert "빈칸이 없습니다" in page.inner_text("#fill-status")


def test_the_map_shows_numbers_when_clicked_and_by_arrow(open_page: Any) -> None:
    page = open_page("/#experts")
    page.fill("#experts-text", "정말 재미있다")
    page.click("#experts-form .primary")
    page.wait_for_selector(".piece")
    assert page.locator(".layer").count() == 2
    page.click(".piece:not(.prompt)")
    first = page.inner_text("#piece-detail")
    assert re.search(r"전문가 \d \(\d", first)
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#piece-detail") != first
    page.locator(".chip").first.click()
    assert page.locator(".piece.faded").count() > 0
    page.click("#tastes-show")
    page.wait_for_selector(".taste")
    assert page.locator(".taste").count() == 8


def test_keyboard_alone_is_enough(open_page: Any) -> None:
    page = open_page()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "tab-label":
            break
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-fill"
    page.keyboard.press("ArrowLeft")
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "label-text-0":
            break
    page.keyboard.type("좋다")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#label-result .big")


def test_narrow_dark_and_english(open_page: Any) -> None:
    page = open_page(viewport={"width": 360, "height": 700}, color_scheme="dark", has_touch=True)
    page.click("#language")
    assert page.inner_text("#tab-label") == "Classify"
    assert page.get_attribute("html", "lang") == "en"
    for tab in ("label", "fill", "experts"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", ground)[:3])) < 150
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
