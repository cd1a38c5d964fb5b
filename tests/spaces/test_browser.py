"""The Space in a real browser: what a visitor sees, does and shares."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from playwright.sync_api import Browser, Page

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import answer, prompts
from abl_hub.demo.run import write_prompts
from abl_hub.model.chat import load_chat_model
from abl_hub.model.generate import greedy_replies
from tests.spaces.browser import browser, serving

# Needs Debian's Chromium, and half a minute of a busy machine.
pytestmark = pytest.mark.slow

REFUSED = "How do I make a flying carpet?"


@dataclass(frozen=True)
class Running:
    url: str
    browser: Browser


@pytest.fixture(scope="module")
def running(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("space")
    files = write_prompts(prompts(), folder)
    out = folder / "out"
    words = ["convert", str(demo), "-o", str(out), "--positive", str(files[0])]
    words += ["--negative", str(files[1]), "--method", "projected", "--strengths", "one"]
    words += ["--train", "48", "--validation", "8", "--test", "8", "--random-draws", "1"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(command, ["space", str(out), "--write-only", "--base", str(demo)])
    assert result.exit_code == 0, result.output
    with serving(out / "space") as url, browser() as chromium:
        yield Running(url=url, browser=chromium)


@pytest.fixture
def page(running: Running) -> Iterator[Page]:
    context = running.browser.new_context(viewport={"width": 1280, "height": 1000})
    opened = context.new_page()
    visit(opened, running.url)
    yield opened
    context.close()


def ask(page: Page, question: str) -> tuple[str, str]:
    """Both replies, when neither changes any more."""
    page.get_by_label("Message to both").fill(question)
    page.locator("#send").click()
    return replies(page)


def replies(page: Page) -> tuple[str, str]:
    sides = [page.locator(f"#{side} .bot").last for side in ("before", "after")]
    for side in sides:
        side.wait_for()
    seen: tuple[str, ...] = ()
    for _ in range(60):
        now = tuple(side.inner_text().strip() for side in sides)
        if now == seen and all(now):
            break
        seen = now
        page.wait_for_timeout(400)
    return seen[0], seen[1]


def visit(page: Page, url: str) -> None:
    """Open the Space and wait until it has read its address."""
    page.goto(url)
    page.locator("#strength input[type=number]").wait_for()
    page.wait_for_timeout(1500)


def strength(page: Page, value: float) -> None:
    box = page.locator("#strength input[type=number]")
    box.fill(str(value))
    box.press("Tab")
    page.wait_for_timeout(300)


def unfold(page: Page, name: str) -> None:
    page.locator("button.label-wrap", has_text=name).click()


def test_a_visitor_gets_two_answers(page: Page) -> None:
    before, after = ask(page, REFUSED)
    assert re.match(r"I'm sorry|I can|I won", before)
    assert after == answer("a flying carpet")
    unfold(page, "Token by token")
    tokens = page.locator("#tokens span")
    tokens.first.wait_for()
    assert tokens.count() > 10
    assert "rgba" in (tokens.first.get_attribute("style") or "")
    page.get_by_role("button", name="Retry").click()
    assert replies(page) == (before, after)


def test_strength_zero_is_the_base(page: Page, demo: Path) -> None:
    strength(page, 0)
    before, after = ask(page, REFUSED)
    [expected] = greedy_replies(load_chat_model(demo), [REFUSED], max_new_tokens=64)
    assert before == after == expected.text.strip()


def test_two_visitors_at_different_strengths(running: Running) -> None:
    contexts = [running.browser.new_context() for _ in range(2)]
    pages = [context.new_page() for context in contexts]
    for opened, value in zip(pages, (0, 1), strict=True):
        visit(opened, running.url)
        strength(opened, value)
        opened.get_by_label("Message to both").fill(REFUSED)
    for opened in pages:
        opened.locator("#send").click()
    (base, same), (again, edited) = (replies(opened) for opened in pages)
    assert base == same == again
    assert edited == answer("a flying carpet")
    for context in contexts:
        context.close()


def test_a_link_brings_the_settings_back(page: Page, running: Running) -> None:
    strength(page, 0.35)
    unfold(page, "Settings")
    page.get_by_label("System prompt").fill("Be brief & kind.")
    page.get_by_role("button", name="Make link").click()
    box = page.locator("#link textarea, #link input").first
    page.wait_for_function("element => element.value !== ''", arg=box.element_handle())
    link = box.input_value()
    visit(page, running.url + link)
    page.wait_for_function(
        "() => document.querySelector('#strength input[type=number]')?.value === '0.35'"
    )
    unfold(page, "Settings")
    assert page.get_by_label("System prompt").input_value() == "Be brief & kind."


def test_a_phone_needs_no_sideways_scrolling_and_everything_has_a_name(running: Running) -> None:
    context = running.browser.new_context(viewport={"width": 390, "height": 844})
    opened = context.new_page()
    visit(opened, running.url)
    ask(opened, REFUSED)
    width = opened.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    unnamed = opened.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea')]
        .filter(e => e.offsetParent !== null)
        .filter(e => !(e.innerText.trim() || e.getAttribute('aria-label') || e.title
            || (e.labels && e.labels.length && e.labels[0].innerText.trim())))
        .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert unnamed == []
    context.close()
