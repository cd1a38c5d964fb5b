"""A visitor of the page: what people do with it, in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, expect

PATIENCE_MS = 60_000


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


def send(page: Page, text: str) -> None:
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
