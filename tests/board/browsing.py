# SPDX-License-Identifier: Apache-2.0
"""Headless Chromium, and LlamaBoard's page as a user handles it: by labels, or by the ids of this package's fields."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest


if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Folder in which pictures of every state that a test shows are written; none without it.
PICTURES = os.environ.get("TPAW_BOARD_PICTURES")
WIDTHS = (1280, 1920)
REQUIRED = "TPAW_BROWSER_TESTS"
# No sandbox, which root cannot have; and no /dev/shm, which is small in containers.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
# For a machine that does much else meanwhile.
ACTION_TIMEOUT_MS = 120_000
RUN_TIMEOUT_MS = 600_000
INFO = "span[data-testid='block-info']"


def find_chromium() -> str:
    """Return Chromium's path: the environment variable CHROMIUM, or a name on PATH; skip the test without one."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        _skip("no Chromium on PATH: install Debian's package `chromium`, or name one in the variable CHROMIUM")
    return found


def _skip(reason: str) -> None:
    """Skip, or fail where the environment says that the tests in the browser must run."""
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(f"{REQUIRED}=required, but there is {reason}")
    pytest.skip(reason)


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """Start headless Chromium; skip the test where it or Playwright is missing."""
    path = find_chromium()
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


class Board:
    """A page of LlamaBoard. What it asks of other machines is not answered, and recorded in `asked_outside`."""

    def __init__(self, browser: Browser, url: str, width: int = 1280, theme: str = "light") -> None:
        self.url = f"{url}?__theme={theme}"
        self.asked_outside: list[str] = []
        self.errors: list[str] = []
        self.context: BrowserContext = browser.new_context(viewport={"width": width, "height": 1000})
        self.context.set_default_timeout(ACTION_TIMEOUT_MS)
        # The board's own requests do not pass here: they would wait while a test waits for something else.
        self.context.route(re.compile(r"^https?://(?!127\.0\.0\.1[:/])"), self._refuse)
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _refuse(self, route: Route) -> None:
        self.asked_outside.append(route.request.url)
        route.abort()

    def open(self) -> Board:
        """Load the page and wait until its language and its output folder are filled in."""
        self.page.goto(self.url)
        self.page.locator(f".block:has({INFO}:text-is('Output dir')) input").wait_for()
        return self

    def close(self) -> None:
        self.context.close()

    def picture(self, name: str) -> None:
        """Write pictures of this state, narrow and wide, light and dark, where the environment names a folder."""
        if not PICTURES:
            return
        before = self.page.viewport_size
        for width in WIDTHS:
            self.page.set_viewport_size({"width": width, "height": before["height"]})
            for theme in ("light", "dark"):
                self.page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")
                path = Path(PICTURES) / f"{name}-{width}-{theme}.png"
                self.page.screenshot(path=path, full_page=True, animations="disabled")
        self.page.evaluate("document.body.classList.remove('dark')")
        self.page.set_viewport_size(before)

    def field(self, name: str) -> Locator:
        """The visible field of this label, or the one with this id where the name is an id of this package."""
        if name.startswith("tpaw_"):
            return self.page.locator(f"#{name}")
        return self.page.locator(f".block:visible:has({INFO}:text-is('{name}'))").first

    def fill(self, name: str, value: Any) -> None:
        """Give a field a value: a dropdown's choice, a list of them, a number, a tick, or a text."""
        block = self.field(name)
        if block.locator("input[type='checkbox']").count():
            block.locator("input[type='checkbox']").set_checked(bool(value))
        elif block.locator("input[type='number']").count():
            block.locator("input[type='number']").first.fill(str(value))
            block.locator("input[type='number']").first.blur()
        elif block.locator("ul, .wrap-inner, input[role='listbox']").count():
            self._choose(block, value)
        else:
            block.locator("textarea, input").first.fill(str(value))
            block.locator("textarea, input").first.blur()

    def _choose(self, block: Locator, value: Any) -> None:
        """Choose in a dropdown; what its list does not offer is typed, as custom values are."""
        for remove in reversed(block.locator(".token-remove:not(.remove-all)").all()):
            remove.click()
        for text in value if isinstance(value, list) else [value]:
            box = block.locator("input").first
            box.click()
            box.fill(str(text))
            option = block.page.get_by_role("option", name=str(text), exact=True)
            if option.count():
                option.first.click()
            else:
                box.press("Enter")
            box.blur()

    def value(self, name: str) -> Any:
        """What a field shows: a tick, the chosen texts of a list, or text."""
        block = self.field(name)
        if block.locator("input[type='checkbox']").count():
            return block.locator("input[type='checkbox']").is_checked()
        tokens = block.locator(".token")
        if tokens.count():
            return [text.strip() for text in tokens.all_inner_texts()]
        return block.locator("textarea, input").first.input_value()

    def choices(self, name: str) -> list[str]:
        """What a dropdown offers."""
        box = self.field(name).locator("input").first
        box.click()
        self.page.get_by_role("option").first.wait_for()
        texts = [text.replace("✓", "").strip() for text in self.page.get_by_role("option").all_inner_texts()]
        box.press("Escape")
        box.blur()
        return texts

    def is_usable(self, name: str) -> bool:
        """Whether a field can be changed."""
        return self.field(name).locator("input, textarea").first.is_enabled()

    def until_usable(self, name: str, usable: bool) -> None:
        """Wait until a field can be changed, or no longer."""
        state = "enabled" if usable else "disabled"
        self.page.locator(f"#{name} :is(input, textarea):{state}").first.wait_for()

    def until_value(self, name: str, value: str | re.Pattern[str]) -> None:
        """Wait until a field of this package shows a text."""
        from playwright.sync_api import expect

        expect(self.field(name).locator("textarea, input").first).to_have_value(value, timeout=ACTION_TIMEOUT_MS)

    def opacity(self, name: str) -> float:
        return float(self.field(name).evaluate("element => getComputedStyle(element).opacity"))

    def choose_language(self, lang: str) -> None:
        """Choose in LlamaBoard's first field, whose label differs from language to language."""
        box = self.page.locator("input[role='listbox']").first
        box.click()
        self.page.get_by_role("option", name=lang, exact=True).click()

    def tab(self, name: str) -> Locator:
        """A tab of the top row."""
        return self.page.get_by_role("tab", name=name, exact=True)

    def button(self, name: str) -> Locator:
        return self.page.locator(f"button:visible:text-is('{name}')")

    def press(self, name: str) -> None:
        self.button(name).click()

    def unfold(self, name: str) -> None:
        """Open an accordion that is closed."""
        head = self.page.locator(f"button.label-wrap:has(span:text-is('{name}'))")
        if "open" not in (head.get_attribute("class") or "").split():
            head.click()

    def wait_for(self, text: str, timeout_ms: int = ACTION_TIMEOUT_MS) -> None:
        """Wait until a visible text holds these words."""
        self.page.get_by_text(text).locator("visible=true").first.wait_for(timeout=timeout_ms)

    def wait_for_end(self, timeout_ms: int = RUN_TIMEOUT_MS) -> str:
        """Wait until a training finished or failed; return what the board says of it."""
        end = self.page.get_by_text(re.compile(r"^(Finished|Failed)\.")).locator("visible=true").first
        end.wait_for(timeout=timeout_ms)
        return end.inner_text()

    def messages(self) -> list[str]:
        """The messages that pop up now."""
        return self.page.locator(".toast-body").all_inner_texts()

    def message(self, text: str) -> None:
        """Wait for a message with these words, one that pops up or one in the box of the output."""
        self.page.locator(".toast-body, .prose:visible").filter(has_text=text).first.wait_for()

    def dismiss(self) -> None:
        """Close the messages that popped up."""
        self.page.evaluate("document.querySelectorAll('.toast-close').forEach(button => button.click())")
        self.page.wait_for_function("!document.querySelector('.toast-body')")
