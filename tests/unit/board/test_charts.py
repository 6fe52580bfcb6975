# SPDX-License-Identifier: Apache-2.0
"""The live charts: what is logged is drawn, over all iterations; thinned, in the language of the page, on white."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llamafactory_tpaw.board import charts as module
from llamafactory_tpaw.board.charts import MOST_POINTS, Charts
from llamafactory_tpaw.board.locales import say
from llamafactory_tpaw.board.training_log import TRAINER_LOG
from tests.unit.board.runs_on_disk import STEPS, entry, folder_of, write_run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(-1).mkdir(parents=True)


def lines_of(axis: Any) -> list[tuple[list[float], list[float]]]:
    """The drawn curves; a mark of an iteration has two points at one step, zero is a line across."""
    curves = [line for line in axis.lines if len(set(line.get_xdata())) > 1 and line.get_transform() == axis.transData]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in curves]


def words_of(figure: Any) -> set[str]:
    return {text for axis in figure.axes for text in (axis.get_title(loc="left"), axis.get_xlabel())}


def test_each_panel_has_its_curve_over_all_iterations() -> None:
    charts = Charts([write_run(0), write_run(1), folder_of(2)], [0, 1, 2])
    figure = charts.figure("en")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["Loss", "Target reward", "Margin", "Player weight"]
    first, second = lines_of(figure.axes[1])
    assert first == ([*range(1, 11)], pytest.approx([step / 10 for step in range(1, 11)]))
    assert second == ([*range(11, 21)], pytest.approx([1 + step / 10 for step in range(1, 11)]))
    weights = lines_of(figure.axes[3])
    assert [(steps[0], values[0]) for steps, values in weights] == [(1, 1.0), (11, 0.5), (11, 0.5)]
    names = [text.get_text() for text in figure.axes[3].get_legend().get_texts()]
    assert names == ["$\\theta_{0}$", "$\\theta_{1}$"]
    for axis in figure.axes:
        assert [text.get_text() for text in axis.texts] == ["0", "1"], "iteration 2 has not begun"
        assert [text.xy[0] for text in axis.texts] == [0, 10]
        assert axis.get_xlim()[0] == 0, "the number of the first iteration stands in its panel"


def test_the_iterations_before_the_first_file_are_drawn_too() -> None:
    for iteration in range(2):
        write_run(iteration)
    play = SimpleNamespace(
        folders=[folder_of(2)], iterations=[2], settings=[{"model_name_or_path": str(folder_of(1))}]
    )
    assert len(lines_of(Charts.of(play).figure("en").axes[0])) == 2
    play.settings = [{"model_name_or_path": "base", "adapter_name_or_path": str(folder_of(0))}]
    assert len(lines_of(Charts.of(play).figure("en").axes[0])) == 1
    play.settings = [{}]
    assert say("chart_empty", "en") in {text.get_text() for text in Charts.of(play).figure("en").axes[0].texts}


def test_without_players_the_accuracy_takes_their_place() -> None:
    """As under objective `tspin`."""
    folder = write_run(0)
    rows = [entry(step, 0, 0) for step in range(1, STEPS + 1)]
    (folder / TRAINER_LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = Charts([folder], [0]).figure("en")
    assert [axis.get_title(loc="left") for axis in figure.axes][3] == "Reward accuracy"
    assert lines_of(figure.axes[3])[0][1][-1] == 1.0


def test_it_is_drawn_again_only_when_something_was_logged() -> None:
    folder = write_run(0)
    charts = Charts([folder], [0])
    figure = charts.figure("en")
    assert charts.figure("en") is figure
    with (folder / TRAINER_LOG).open("a") as stream:
        stream.write(json.dumps(entry(STEPS + 1, 0, 1)) + "\n")
    again = charts.figure("en")
    assert again is not figure
    assert lines_of(again.axes[0])[0][0][-1] == STEPS + 1
    assert charts.figure("ru") is not again


def test_a_long_log_is_thinned() -> None:
    folder = write_run(0)
    rows = (entry(step, 0, 3) for step in range(1, 5001))
    (folder / TRAINER_LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = Charts([folder], [0]).figure("en")
    assert {len(steps) for axis in figure.axes for steps, _ in lines_of(axis)} == {MOST_POINTS}


def test_a_language_is_drawn_where_a_font_has_its_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import font_manager

    charts = Charts([write_run(0)], [0])
    assert say("column_loss", "ru") in words_of(charts.figure("ru"))
    fonts = list(font_manager.fontManager.ttflist)
    for names, shown in (((), "en"), (("NanumGothic",), "ko")):
        module._language_and_fonts.cache_clear()
        known = [font for font in fonts if font.name == "DejaVu Sans"] + [SimpleNamespace(name=name) for name in names]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", known)
        assert module._language_and_fonts("ko") == (shown, ["DejaVu Sans", *names])
    module._language_and_fonts.cache_clear()


@pytest.mark.parametrize("columns", [1, 2])
def test_it_is_legible_on_any_page(columns: int) -> None:
    figure = Charts([write_run(0), write_run(1)], [0, 1]).figure("en", columns)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with Image.open(buffer) as image:
        pixels = np.asarray(image.convert("RGBA"))
    assert pixels.shape[1] == columns * 630
    # The paper is opaque, so that a dark page does not swallow the text.
    assert (pixels[..., 3] == 255).all()
    assert (pixels[0, 0] == 255).all()
    assert (pixels[..., :3].max(axis=-1) < 120).mean() > 0.005, "there is dark ink on it"
    # Nothing is cut off.
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0


def test_nothing_logged_is_said() -> None:
    figure = Charts([folder_of(0)], [0]).figure("ja")
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == [say("chart_empty", module._language_and_fonts("ja")[0])]
