# SPDX-License-Identifier: Apache-2.0
"""Headless Chromium, and LlamaBoard's page as a user handles it: by labels, or by the ids of this package's fields."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest


if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Route

    from tests.board.server import Server

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
REQUIRED = "TPAW_BROWSER_TESTS"
# No sandbox, which root cannot have; and no /dev/shm, which is small in containers.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
# For a machine that does much else meanwhile.
ACTION_TIMEOUT_MS, RUN_TIMEOUT_MS = 120_000, 600_000
INFO = "span[data-testid='block-info']"


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """Start headless Chromium; skip the test where it or Playwright is missing."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        _skip("no Chromium on PATH: install Debian's package `chromium`, or name one in the variable CHROMIUM")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _skip("no playwright: pip install 'llamafactory-tpaw[dev]'")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def _skip(reason: str) -> None:
    """Skip, or fail where the environment says that the tests in the browser must run."""
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(f"{REQUIRED}=required, but there is {reason}")
    pytest.skip(reason)


class Board:
    """A page of LlamaBoard. What it asks of other machines is not answered, and recorded in `asked_outside`."""

    def __init__(self, browser: Browser, server: Server) -> None:
        self.server = server
        self.asked_outside: list[str] = []
        self.errors: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": 1280, "height": 1000})
        self.page.set_default_timeout(ACTION_TIMEOUT_MS)
        # The board's own requests do not pass here: they would wait while a test waits for something else.
        self.page.route(re.compile(r"^https?://(?!127\.0\.0\.1[:/])"), self._refuse)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _refuse(self, route: Route) -> None:
        self.asked_outside.append(route.request.url)
        route.abort()

    def open(self) -> Board:
        """Load the page and wait until its language and its output folder are filled in."""
        self.page.goto(self.server.url)
        self.page.locator(f".block:has({INFO}:text-is('Output dir')) input").wait_for()
        return self

    def field(self, name: str) -> Locator:
        """The visible field of this label, or the one with this id where the name is an id of this package."""
        if name.startswith("tpaw_"):
            return self.page.locator(f"#{name}")
        return self.page.locator(f".block:visible:not(:has(.block)):has({INFO}:text-is('{name}'))").first

    def fill(self, name: str, value: Any) -> None:
        """Give a field a value: a dropdown's choice, a number, or a text."""
        block = self.field(name)
        if block.locator("ul, .wrap-inner, input[role='listbox']").count():
            box = block.locator("input").first
            box.click()
            box.fill(str(value))
            option = block.page.get_by_role("option", name=str(value), exact=True)
            if option.count():
                option.first.click()
            else:  # typed, as custom values are
                box.press("Enter")
            box.blur()
        else:
            box = block.locator("input[type='number'], textarea, input").first
            box.fill(str(value))
            box.blur()

    def value(self, name: str) -> str:
        """What a field shows."""
        return self.field(name).locator("textarea, input").first.input_value()

    def until_value(self, name: str, value: str) -> None:
        """Wait until a field shows a text."""
        from playwright.sync_api import expect

        expect(self.field(name).locator("textarea, input").first).to_have_value(value, timeout=ACTION_TIMEOUT_MS)

    def choose_language(self, lang: str) -> None:
        """Choose in LlamaBoard's first field, whose label differs from language to language."""
        self.page.locator("input[role='listbox']").first.click()
        self.page.get_by_role("option", name=lang, exact=True).click()

    def press(self, name: str) -> None:
        self.page.locator(f"button:visible:text-is('{name}')").click()

    def unfold(self, name: str) -> None:
        """Open an accordion that is closed."""
        head = self.page.locator(f"button.label-wrap:has(span:text-is('{name}'))")
        if "open" not in (head.get_attribute("class") or "").split():
            head.click()

    def wait_for(self, text: str | re.Pattern[str], timeout_ms: int = ACTION_TIMEOUT_MS) -> None:
        """Wait until a visible text holds these words."""
        self.page.get_by_text(text).locator("visible=true").first.wait_for(timeout=timeout_ms)

    def output(self) -> str:
        """The text in LlamaBoard's output box, with what has been printed."""
        return "\n".join(self.page.locator(".prose:visible:has(code)").all_inner_texts())
