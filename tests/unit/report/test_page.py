# SPDX-License-Identifier: Apache-2.0
"""The page and its pictures: the numbers are on them, texts are escaped, and nothing is fetched."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from llamafactory_tpaw.report import plots
from llamafactory_tpaw.report.render import draw_pictures, render_page, write_report


PNG = b"\x89PNG\r\n\x1a\n"


class Reader(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that are not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(page)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_numbers_are_on_the_page_and_nothing_is_fetched(project):
    page = project.page()
    html = render_page(page, draw_pictures(page))
    reader = Reader(html)
    text = reader.text
    assert "team theta_2 30 7 of 10 70.0 % 39.0 % to 89.0 %" in text
    assert "plain step 12 12 4 of 10 40.0 % 17.0 % to 69.0 %" in text
    assert "team (20.0 % → 70.0 %, 30 optimizer steps, 1,280 triplets seen, 24 seconds): a note" in text
    assert "team theta_1 10 320 30.0 % 12.5 % generate 3, score 1, train 8" in text
    assert "plain more 30 – – – train 8" in text
    assert "theta_0, its start +50.0 +19.0 to +81.0 0.0625 plain, end +40.0" in text
    assert not {"script", "link", "iframe", "object", "a"} & set(reader.tags)
    sources = [value for name, value in reader.attributes if name in ("src", "href", "srcset")]
    assert [value[:22] for value in sources] == ["data:image/png;base64,"] * 3
    assert not re.search(r"https?://|@import|url\(", html)


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
    inside = {base64.b64decode(text) for text in re.findall(r"base64,([A-Za-z0-9+/=]+)", path.read_text())}
    beside = {file.stem: file.read_bytes() for file in path.parent.glob("*.png")}
    assert set(beside) == {"accuracy", "rewards", "weights"}
    assert all(picture.startswith(PNG) for picture in beside.values())
    assert inside == set(beside.values())


@pytest.fixture
def figures(monkeypatch):
    """Keeps each figure that is drawn, and still writes it."""
    drawn, write = [], plots._png
    monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(figure) or write(figure))
    return drawn


def test_accuracy_shows_every_point_with_its_interval(project, figures):
    plots.draw_accuracy(project.methods(), "right answers")
    axis = figures[0].axes[0]
    team, plain = axis.containers
    assert list(team.lines[0].get_ydata()) == pytest.approx([20, 30, 70])
    assert list(plain.lines[0].get_ydata()) == pytest.approx([20, 40, 30])
    lows, highs = zip(*(sorted(segment[:, 1]) for segment in team.lines[2][0].get_segments()), strict=True)
    assert (lows, highs) == (pytest.approx((6, 11, 39)), pytest.approx((51, 61, 89)))
    assert [text.get_text() for text in axis.texts] == ["$\\theta_{0}$", "$\\theta_{1}$", "$\\theta_{2}$"]


def test_rewards_and_weights_run_over_all_iterations(project, figures):
    plots.draw_rewards(project.methods())
    plots.draw_weights(project.methods()[0])
    first, border, second = figures[0].axes[0].lines[:3]
    assert (list(first.get_xdata()), list(border.get_xdata())) == ([5, 10], [10, 10])
    assert list(second.get_xdata()) == [15, 20, 25, 30]
    assert list(second.get_ydata()) == pytest.approx([0.05, 0.1, 0.15, 0.2])
    legend = [text.get_text() for text in figures[1].axes[0].get_legend().get_texts()]
    assert legend == ["$\\theta_{0}$", "$\\theta_{1}$"]


def test_labels_with_dollars_and_values_that_are_not_finite(project):
    team, _ = project.methods()
    row = {**team.runs[0].logs[0], "rewards/target": math.nan, "rewards/margin": math.inf}
    broken = replace(team, label="$x_{", runs=(replace(team.runs[0], logs=(row,)), team.runs[1]))
    assert plots.draw_rewards([broken]).startswith(PNG)
    assert plots.draw_accuracy([broken], "50 $ {").startswith(PNG)
