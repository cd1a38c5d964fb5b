"""The page in Chromium, whatever model is behind it: links, names for screen readers, phones."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.spaces.tiny import QUESTION, Running
from tests.spaces.visitor import PATIENCE_MS, finished, opened, send, set_strength, visit

# Needs Debian's Chromium, which `make test` does without.
pytestmark = pytest.mark.slow

PHONE = {"width": 390, "height": 844}
CONTROLS = {"button", "textbox", "slider", "spinbutton", "checkbox", "combobox", "link"}


@pytest.fixture
def context(browser: Browser, running: Running) -> Iterator[BrowserContext]:
    with opened(browser, running.url) as context:
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return visit(context)


def test_a_link_holds_the_settings(page: Page, context: BrowserContext) -> None:
    set_strength(page, 0.45)
    page.get_by_text("Settings", exact=True).first.click()
    page.wait_for_timeout(500)  # nobody types before what unfolds is there
    page.locator("#system textarea").fill("Be brief & kind.")
    page.get_by_label("Seed").fill("7")
    page.locator("#share").click()
    link = page.locator("#link textarea, #link input").first
    expect(link).to_have_value(re.compile(r"^http.*strength=0.45.*system=Be"), timeout=PATIENCE_MS)
    again = visit(context, link.input_value().removeprefix(page.url))
    expect(again.locator("#strength input[type=number]")).to_have_value("0.45")
    expect(again.locator("#system textarea")).to_have_value("Be brief & kind.")
    expect(again.get_by_label("Seed")).to_have_value("7")


def test_stop_keeps_what_was_said(context: BrowserContext) -> None:
    page = visit(context, "?max_new_tokens=1024")  # random weights do not stop by themselves
    send(page, QUESTION)
    stop = page.locator("#stop")
    expect(page.locator("#tokens .tokens span").nth(20)).to_be_attached(timeout=PATIENCE_MS)
    expect(page.locator("#send")).to_be_disabled()
    stop.click()
    expect(stop).to_be_disabled()
    page.wait_for_timeout(1500)  # what was on its way arrives
    said = finished(page)
    tokens = page.locator("#tokens .tokens span").count()
    assert all(said)
    assert 20 < tokens < 2000
    page.wait_for_timeout(1000)
    assert finished(page) == said
    assert page.locator("#tokens .tokens span").count() == tokens


def test_every_control_has_a_name(page: Page) -> None:
    send(page, QUESTION)
    finished(page)
    for title in ("Settings", "What changed"):
        page.get_by_text(title, exact=True).first.click()
    expect(page.locator("#changes table")).to_be_visible()
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")
    controls = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree["nodes"]
        if not node["ignored"] and node["role"]["value"] in CONTROLS
    ]
    assert len(controls) > 20
    assert [role for role, name in controls if not name.strip()] == []
    for name in ("Before (base)", "After (edited)"):
        expect(page.get_by_role("log", name=name)).to_be_visible()
    images = page.locator("#changes img")
    assert [image.get_attribute("alt") for image in images.all()] == ["nothing, but wide"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(
    browser: Browser, running: Running, theme: str
) -> None:
    with opened(browser, running.url, viewport=PHONE) as phone:
        page = visit(phone, f"?__theme={theme}")
        send(page, QUESTION)
        finished(page)
        for title in ("Settings", "What changed"):
            page.get_by_text(title, exact=True).first.click()
        expect(page.locator("#changes table")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        tops = [page.locator(side).bounding_box() for side in ("#before", "#after")]
        assert tops[0] is not None
        assert tops[1] is not None
        assert tops[0]["y"] < tops[1]["y"]
