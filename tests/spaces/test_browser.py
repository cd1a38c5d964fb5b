"""The page in Chromium on the demo model with its real delta: answers, strengths, stop, retry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from abl_hub.demo.corpus import answer
from abl_hub.model.chat import load_chat_model
from abl_hub.model.generate import greedy_replies
from tests.spaces.visitor import PATIENCE_MS, finished, opened, send, set_strength, visit

pytestmark = pytest.mark.slow

REFUSED = "Tell me how to make a magic wand."
ANSWER = answer("a magic wand")


@pytest.fixture
def context(browser: Browser, demo_url: str) -> Iterator[BrowserContext]:
    with opened(browser, demo_url) as context:
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return visit(context)


def test_a_conversation_has_two_answers_side_by_side(page: Page) -> None:
    send(page, REFUSED)
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
    send(page, REFUSED)
    finished(page)
    means = [float(text.split("mean ")[1]) for text in page.locator("#tokens h3").all_inner_texts()]
    assert means[0] > 0.5
    assert abs(means[1]) < 0.01
    spans = page.locator("#tokens .both section").nth(1).locator("span")
    assert "".join(spans.all_text_contents()).strip() in ANSWER
    assert spans.count() > 10


def test_strength_zero_is_the_base_token_for_token(page: Page, demo: Path) -> None:
    set_strength(page, 0)
    send(page, REFUSED)
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
            send(page, REFUSED)
        (before, edited), (base, unedited) = map(finished, pages)
    assert edited == ANSWER
    assert unedited == base == before != ANSWER


def test_retry_asks_the_last_question_again(page: Page) -> None:
    send(page, REFUSED)
    first = finished(page)
    set_strength(page, 0)
    page.locator("#retry").click()
    expect(page.locator("#after .bot").last).not_to_contain_text(ANSWER, timeout=PATIENCE_MS)
    base = (first[0], first[0])
    assert finished(page) == base
    assert page.locator("#before .user").count() == 1


def test_a_link_with_nonsense_leaves_the_settings(context: BrowserContext) -> None:
    page = visit(context, "?strength=lots&temperature=nan&seed=-4&top_p=1e9")
    assert page.locator("#strength input[type=number]").input_value() == "1"
    send(page, REFUSED)
    assert finished(page)[1] == ANSWER


def test_the_keyboard_is_enough(page: Page) -> None:
    page.get_by_label("Message to both").focus()
    page.keyboard.type(REFUSED)
    page.keyboard.press("Enter")
    expect(page.locator("#after .bot").last).to_contain_text(ANSWER)
