# SPDX-License-Identifier: Apache-2.0
"""The report in the browser, on a wide screen and on a phone, in the dark, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory_tpaw.report.collect import collect
from llamafactory_tpaw.report.page import blocks_of
from llamafactory_tpaw.report.render import write_page
from tests.board.browsing import open_chromium
from tests.unit.report.studied import EXAMPLE, write_results


VIEWS = ((1280, "light", "rgb(255, 255, 255)"), (390, "dark", "rgb(18, 18, 18)"))


@pytest.mark.integration
def test_the_page_fits_and_texts_of_triplets_are_texts(tmp_path: Path) -> None:
    blocks = blocks_of(collect([write_results(tmp_path / "results", 2)]))
    path = write_page("A study " + "w" * 80, blocks, tmp_path / "report")
    with open_chromium() as browser:
        for width, scheme, ground in VIEWS:
            page, said = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, said=said: said.append(request.url[:5]))
            page.goto(path.as_uri())
            page.locator("summary").first.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 300)")
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
            assert page.get_by_role("cell", name=EXAMPLE["generated"], exact=True).first.is_visible()
            assert page.evaluate("window.hacked") is None
            assert set(said) <= {"file:", "data:"}, "nothing on the console, and only the page itself is asked for"
