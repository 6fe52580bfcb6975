# SPDX-License-Identifier: Apache-2.0
"""LlamaBoard as a server on loopback, headless Chromium, and the page as a user handles it: by labels and our ids."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.processes import Started, free_port
from tests.runs import Project


if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Route


NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# No sandbox, which root cannot have; and no /dev/shm, which is small in containers.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
# For a machine that does much else meanwhile.
ACTION_TIMEOUT_MS, RUN_TIMEOUT_MS = 120_000, 600_000
ENVIRONMENT = {
    "BROWSER": "true",  # what the page is opened with at start
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SERVER_NAME": "127.0.0.1",
    "DISABLE_VERSION_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
    "no_proxy": "127.0.0.1,localhost",
}
INFO = "span[data-testid='block-info']"


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """Start headless Chromium; skip the test where it or Playwright is missing."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None or importlib.util.find_spec("playwright") is None:
        # The environment says where the tests in the browser must run.
        end = pytest.fail if os.environ.get("TPAW_BROWSER_TESTS") == "required" else pytest.skip
        end("Playwright (pip install 'llamafactory-tpaw[dev]') or Chromium is missing: `make chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Server(Started):
    """`llamafactory-cli webui` in a folder, and all processes that it was seen to start."""

    def __init__(self, project: Project) -> None:
        port = str(free_port())
        self.url = f"http://127.0.0.1:{port}/"
        own = {"GRADIO_SERVER_PORT": port, "GRADIO_TEMP_DIR": str(project.root / "gradio")}
        super().__init__(project, "llamafactory-cli", "webui", **ENVIRONMENT, **own)
        self.known: set[psutil.Process] = set()

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def descendants(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.known |= {*found}
        return found

    def leaves_nothing(self) -> bool:
        """Whether the last process that it started ends within a moment."""
        return not psutil.wait_procs(self.known, timeout=30)[1]

    def stop(self) -> None:
        """Kill the server, and every process of it that is left."""
        if self.process.poll() is None:
            self.descendants()
        self.process.kill()
        self.process.wait()
        for each in psutil.wait_procs(self.known, timeout=1)[1]:
            each.kill()


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
