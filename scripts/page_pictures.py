# SPDX-License-Identifier: Apache-2.0
"""Takes the pictures of the page that README shows, in a headless Chromium.

  kcmoe serve --checkpoint=runs/quickstart/reviews &
  python scripts/page_pictures.py http://127.0.0.1:8000 docs/pictures

Needs `pip install playwright pillow` and a Chromium (apt-get install chromium fonts-noto-cjk).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
from pathlib import Path
from typing import Any

_LARGEST_BYTES = 150_000
_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync"]  # fmt: skip


def save(page: Any, path: Path) -> None:
    """A picture of the whole page with a palette of its own, so that it stays small."""
    from PIL import Image

    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    assert size < _LARGEST_BYTES, f"{path} has {size:,} bytes"
    print(f"{path} {size:,} bytes")


def label(page: Any) -> None:
    """Several lines with their labels."""
    page.click("#label-example")
    page.click("#label-form .primary")
    page.wait_for_selector("#label-table")


def fill(page: Any) -> None:
    """A hidden word, filled in."""
    page.click("#tab-fill")
    page.click("#fill-example")
    page.select_option("#fill-tokens", "8")
    page.click("#fill-form .primary")
    page.wait_for_selector("#fill-result li")


def experts(page: Any) -> None:
    """The map of a text."""
    page.click("#tab-experts")
    page.click("#experts-example")
    page.click("#experts-form .primary")
    page.wait_for_selector(".piece")
    page.click(".piece:not(.prompt)")


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    args.folder.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("KCMOE_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=_FLAGS)
        for shown, scheme, width in ((label, "light", 860), (fill, "light", 860), (experts, "light", 860),
                                     (experts, "dark", 390)):  # fmt: skip
            context = browser.new_context(
                locale="ko-KR", color_scheme=scheme, viewport={"width": width, "height": 600}
            )
            page = context.new_page()
            page.set_default_timeout(120_000)
            page.goto(args.address)
            page.wait_for_selector("html[data-ready]")
            shown(page)
            narrow = "-phone" if width < 500 else ""
            save(page, args.folder / f"page-{shown.__name__}{narrow}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
