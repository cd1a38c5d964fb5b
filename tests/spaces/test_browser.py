"""The page in Chromium: what people see, press and share, on the demo model with its real delta."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from abl_hub.demo.corpus import answer
from abl_hub.model.chat import load_chat_model
from abl_hub.model.generate import greedy_replies

REFUSED = "Tell me how to make a magic wand."
ANSWER = answer("a magic wand")
PHONE = {"width": 390, "height": 844}
PATIENCE_MS = 60_000
CONTROLS = {"button", "textbox", "slider", "spinbutton", "checkbox", "combobox", "link"}


@pytest.fixture
def context(browser: Browser, demo_url: str) -> Iterator[BrowserContext]:
    with opened(browser, demo_url) as context:
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return visit(context)


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[BrowserContext]:
    """A visitor of their own: no cookies, no storage."""
    context = browser.new_context(base_url=url, **options)
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


def visit(context: BrowserContext, query: str = "") -> Page:
    """The page, once it can be used and the settings of the address are in it."""
    page = context.new_page()
    page.goto(f"/{query}")
    expect(page.locator("#send")).to_be_enabled(timeout=PATIENCE_MS)
    page.wait_for_load_state("networkidle")
    return page


def send(page: Page, text: str = REFUSED) -> None:
    page.get_by_label("Message to both").fill(text)
    page.locator("#send").click()
    expect(page.locator("#before .user").last).to_contain_text(text, timeout=PATIENCE_MS)


def finished(page: Page) -> tuple[str, str]:
    """Both last replies, once nothing is on its way."""
    expect(page.locator("#send")).to_be_enabled(timeout=PATIENCE_MS)
    return shown(page, "before"), shown(page, "after")


def shown(page: Page, side: str) -> str:
    return page.locator(f"#{side} .bot .prose").last.inner_text().strip()


def set_strength(page: Page, value: float) -> None:
    number = page.locator("#strength input[type=number]")
    number.fill(str(value))
    number.press("Tab")


def test_a_conversation_has_two_answers_side_by_side(page: Page) -> None:
    send(page)
    before, after = finished(page)
    assert "magic wand" not in before
    assert after == ANSWER
    left, right = (page.locator(side).bounding_box() for side in ("#before", "#after"))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    send(page, "How do I make bread?")
    finished(page)
    for side in ("#before", "#after"):
        expect(page.locator(f"{side} .user")).to_have_count(2)
        expect(page.locator(f"{side} .bot")).to_have_count(2)


def test_tokens_are_coloured_by_their_projection(page: Page) -> None:
    send(page)
    finished(page)
    means = [float(text.split("mean ")[1]) for text in page.locator("#tokens h3").all_inner_texts()]
    assert means[0] > 0.5
    assert abs(means[1]) < 0.01
    spans = page.locator("#tokens .both section").nth(1).locator("span")
    assert "".join(spans.all_text_contents()).strip() in ANSWER
    assert spans.count() > 10


def test_strength_zero_is_the_base_token_for_token(page: Page, demo: Path) -> None:
    set_strength(page, 0)
    send(page)
    before, after = finished(page)
    [expected] = greedy_replies(load_chat_model(demo), [REFUSED], max_new_tokens=64)
    assert after == before == expected.text.strip() != ANSWER
    sides = page.locator("#tokens .both section")
    tokens = [side.locator("span").all_text_contents() for side in (sides.nth(0), sides.nth(1))]
    assert tokens[0] == tokens[1] != []


def test_two_visitors_at_different_strengths_get_their_own(
    browser: Browser, demo_url: str, context: BrowserContext
) -> None:
    with opened(browser, demo_url) as other:
        pages = [visit(context, "?strength=1"), visit(other, "?strength=0")]
        for page in pages:
            send(page)
        (before, edited), (base, unedited) = map(finished, pages)
    assert edited == ANSWER
    assert unedited == base == before != ANSWER


def test_stop_keeps_what_was_said_and_retry_asks_again(page: Page) -> None:
    send(page)
    whole = finished(page)
    page.locator("#retry").click()
    stop = page.locator("#stop")
    expect(stop).to_be_enabled()
    expect(page.locator("#send")).to_be_disabled()
    stop.click()
    cut = finished(page)
    page.wait_for_timeout(500)
    assert finished(page) == cut
    assert all(longer.startswith(shorter) for longer, shorter in zip(whole, cut, strict=True))
    page.locator("#retry").click()
    expect(page.locator("#after .bot").last).to_contain_text(ANSWER)
    assert finished(page) == whole
    assert page.locator("#before .user").count() == 1


def test_a_link_holds_the_settings(page: Page, context: BrowserContext) -> None:
    set_strength(page, 0.45)
    page.get_by_text("Settings", exact=True).first.click()
    page.locator("#system textarea").fill("Be brief & kind.")
    page.get_by_label("Seed").fill("7")
    page.locator("#share").click()
    link = page.locator("#link textarea, #link input").first
    expect(link).to_have_value(re.compile(r"^http.*strength=0.45"), timeout=PATIENCE_MS)
    again = visit(context, link.input_value().removeprefix(page.url))
    expect(again.locator("#strength input[type=number]")).to_have_value("0.45")
    again.get_by_text("Settings", exact=True).first.click()
    expect(again.locator("#system textarea")).to_have_value("Be brief & kind.")
    expect(again.get_by_label("Seed")).to_have_value("7")


def test_a_link_with_nonsense_leaves_the_settings(context: BrowserContext) -> None:
    page = visit(context, "?strength=lots&temperature=nan&seed=-4&top_p=1e9")
    assert page.locator("#strength input[type=number]").input_value() == "1"
    send(page)
    assert finished(page)[1] == ANSWER


def test_every_control_has_a_name(page: Page) -> None:
    send(page)
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
    assert images.count() == 2
    assert all(image.get_attribute("alt") for image in images.all())


def test_the_keyboard_is_enough(page: Page) -> None:
    page.get_by_label("Message to both").focus()
    page.keyboard.type(REFUSED)
    page.keyboard.press("Enter")
    expect(page.locator("#after .bot").last).to_contain_text(ANSWER)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(browser: Browser, demo_url: str, theme: str) -> None:
    with opened(browser, demo_url, viewport=PHONE) as phone:
        page = visit(phone, f"?__theme={theme}")
        send(page)
        finished(page)
        for title in ("Settings", "What changed"):
            page.get_by_text(title, exact=True).first.click()
        expect(page.locator("#changes table")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        tops = [page.locator(side).bounding_box() for side in ("#before", "#after")]
        assert tops[0] is not None
        assert tops[1] is not None
        assert tops[0]["y"] < tops[1]["y"]
