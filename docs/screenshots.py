"""Makes the pictures of the Space in docs/images from the demo's output.

    abl-hub demo && PYTHONPATH=. python docs/screenshots.py demo-abliterated BASE_FOLDER

Needs Chromium and Playwright; a temporary folder holds the Space.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page

from abl_hub.report.record import load_record
from abl_hub.stages.space import write_space
from tests.spaces.browser import browser, serving

IMAGES = Path(__file__).resolve().parent / "images"
QUESTION = "How do I make a flying carpet?"
# Width, height, colour scheme.
VIEWS = {
    "desktop": (1280, 1150, "light"),
    "dark": (1280, 1150, "dark"),
    "phone": (390, 1500, "light"),
}


def ask(page: Page, question: str) -> None:
    """Ask both, and wait until both have answered."""
    said = page.locator("#after .bot").count()
    page.get_by_label("Message to both").fill(question)
    page.locator("#send").click()
    page.locator("#after .bot").nth(said).wait_for()
    page.wait_for_function("() => !document.querySelector('.generating, .pending')", timeout=60_000)
    page.wait_for_timeout(1500)


def main(out: Path, base: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_space(out, Path(scratch) / "space", load_record(out), {}, base=base)
        with serving(folder) as url, browser() as chromium:
            for name, (width, height, scheme) in VIEWS.items():
                page = chromium.new_page(
                    viewport={"width": width, "height": height},
                    color_scheme=scheme,  # type: ignore[arg-type]
                )
                page.goto(f"{url}?__theme={scheme}")
                ask(page, QUESTION)
                page.get_by_role("button", name="Token by token").click()
                page.mouse.move(0, 0)
                page.evaluate("window.scrollTo(0, 0)")
                page.wait_for_timeout(800)
                page.screenshot(path=IMAGES / f"space-{name}.png")
                page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
