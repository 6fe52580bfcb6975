# SPDX-License-Identifier: Apache-2.0
"""The page: the numbers are on it, texts are escaped, nothing is fetched, and the pictures are pictures."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from llamafactory_tpaw.report.render import draw_pictures, render_page, write_report


PNG = b"\x89PNG\r\n\x1a\n"


class Reader(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that are not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def page_text(project):
    page = project.page()
    return render_page(page, draw_pictures(page))


def test_numbers_are_on_the_page(page_text):
    text = Reader(page_text).text
    assert "Right answers: team 20.0 % → 70.0 % ; plain 20.0 % → 30.0 % ." in text
    assert "team θ 2 30 7 of 10 70.0 % 39.0 % to 89.0 %" in text
    assert "plain step 12 12 4 of 10 40.0 % 17.0 % to 69.0 %" in text
    assert "1,280 triplets" in text
    assert "960 examples" in text
    assert "team θ 1 10 320 30.0 % 12.5 % generate 3, score 1, train 8" in text
    assert "plain more 30 – – – train 8" in text


def test_the_main_method_is_compared_with_its_start_and_the_others(page_text):
    text = Reader(page_text).text
    assert "θ 0 , its start +50.0 +19.0 to +81.0 0.0625" in text
    assert "plain, end +40.0" in text


def test_every_tag_is_closed(page_text):
    assert Reader(page_text).open == []


def test_nothing_is_fetched_and_nothing_runs(page_text):
    reader = Reader(page_text)
    assert not {"script", "link", "iframe", "object", "a"} & set(reader.tags)
    sources = [value for name, value in reader.attributes if name in ("src", "href", "srcset")]
    assert sources
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert not re.search(r"https?://|@import|url\(", page_text)


def test_texts_are_escaped(project):
    evil = '<img src=x onerror="alert(1)">&'
    methods = tuple(replace(method, label=evil, note=evil) for method in project.methods())
    page = project.page(title=evil, introduction=(evil,), what=evil, noise=(evil,), methods=methods)
    html = render_page(page, {"accuracy": PNG})
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;") > 8
    assert Reader(html).tags.count("img") == 1


def test_pictures_are_inside_and_beside(project, tmp_path):
    path = write_report(project.page(), tmp_path / "report")
    inside = re.findall(r"base64,([A-Za-z0-9+/=]+)", path.read_text(encoding="utf-8"))
    beside = {file.stem: file.read_bytes() for file in path.parent.glob("*.png")}
    assert set(beside) == {"accuracy", "rewards", "summary", "weights"}
    assert all(picture.startswith(PNG) for picture in beside.values())
    assert {base64.b64decode(text) for text in inside} == {beside[name] for name in ("accuracy", "rewards", "weights")}
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "accuracy.png", "index.html", "rewards.png", "summary.png", "weights.png",
    ]  # fmt: skip


def test_without_self_play_there_are_no_rewards(project):
    page = project.page(methods=project.methods()[1:])
    pictures = draw_pictures(page)
    assert set(pictures) == {"accuracy"}
    assert "Rewards" not in render_page(page, pictures)
