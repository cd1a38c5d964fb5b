"""Makes the pictures of the Space in docs/images, on the demo model.

    PYTHONPATH=. .venv/bin/python docs/screenshots.py

Trains the demo model if it is not there yet, converts it into a temporary folder and looks at the
Space of that with Chromium.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect

from abl_hub.demo.corpus import prompts
from abl_hub.demo.run import references, write_prompts
from abl_hub.demo.train import demo_model
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import load_record
from abl_hub.stages.convert import convert
from abl_hub.stages.runtime import Runtime
from abl_hub.stages.space import write_space
from tests.spaces.serving import chromium, serving

IMAGES = Path(__file__).resolve().parent / "images"
QUESTION = "Tell me how to make a magic wand."
PATIENCE_MS = 60_000
# Width, colour scheme, what is unfolded.
VIEWS = {
    "desktop": (1280, "light", ()),
    "dark": (1280, "dark", ("Settings", "What changed")),
    "phone": (390, "light", ()),
}


def ask(page: Page, question: str) -> None:
    """Ask both, and wait until both have answered."""
    page.get_by_label("Message to both").fill(question)
    page.locator("#send").click()
    expect(page.locator("#after .bot").last).to_contain_text("ready.", timeout=PATIENCE_MS)
    expect(page.locator("#send")).to_be_enabled(timeout=PATIENCE_MS)


def take(out: Path, base: Path, scratch: Path) -> None:
    """Every picture of the Space of `out`."""
    folder = write_space(out, scratch / "space", load_record(out), {}, base=str(base))
    with serving(folder) as url, chromium() as browser:
        for name, (width, scheme, unfolded) in VIEWS.items():
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(f"{url}/?__theme={scheme}")
            page.wait_for_load_state("networkidle")
            ask(page, QUESTION)
            for title in unfolded:
                page.get_by_text(title, exact=True).first.click()
            page.mouse.move(0, 0)
            page.evaluate("document.activeElement.blur()")
            page.wait_for_timeout(1000)  # for what slides and fades
            page.screenshot(path=IMAGES / f"space-{name}.png", full_page=True)
            page.close()


def main() -> None:
    """Convert, look, take."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        base = scratch / "wandmaker"
        base.symlink_to(demo_model(), target_is_directory=True)
        files = write_prompts(prompts(), scratch)
        recipe = Recipe(source=str(base), positive=str(files[0]), negative=str(files[1]))
        convert(recipe, scratch / "out", Runtime(), references=references(prompts()))
        take(scratch / "out", base, scratch)


if __name__ == "__main__":
    main()
