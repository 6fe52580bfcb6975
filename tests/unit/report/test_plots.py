# SPDX-License-Identifier: Apache-2.0
"""What the pictures draw: every point, interval and series, whatever the labels hold."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from llamafactory_tpaw.report import plots


@pytest.fixture
def figures(monkeypatch):
    """Keeps each figure that is drawn, and still writes it."""
    drawn, write = [], plots._png
    monkeypatch.setattr(plots, "_png", lambda figure, **options: drawn.append(figure) or write(figure, **options))
    return drawn


def columns(line):
    return list(line.get_xdata()), list(line.get_ydata())


def test_accuracy_shows_every_point_with_its_interval(project, figures):
    plots.draw_accuracy(project.methods(), "right answers")
    axis = figures[0].axes[0]
    team, plain = axis.containers
    assert list(team.lines[0].get_ydata()) == pytest.approx([20, 30, 70])
    assert list(plain.lines[0].get_ydata()) == pytest.approx([20, 40, 30])
    assert list(team.lines[0].get_xdata()) == pytest.approx([0, 10, 30], abs=0.5)
    lows, highs = zip(*(sorted(segment[:, 1]) for segment in team.lines[2][0].get_segments()), strict=True)
    assert lows == pytest.approx((6, 11, 39))
    assert highs == pytest.approx((51, 61, 89))
    assert [text.get_text() for text in axis.texts] == ["$\\theta_{0}$", "$\\theta_{1}$", "$\\theta_{2}$"]
    assert axis.get_ylabel() == "right answers, %"


def test_rewards_run_over_all_iterations(project, figures):
    plots.draw_rewards(project.methods())
    first, second, border = figures[0].axes[0].lines[:3]
    assert columns(first)[0] == [5, 10]
    assert columns(second)[0] == [15, 20, 25, 30]
    assert columns(second)[1] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert columns(border)[0] == [10, 10]
    assert figures[0].axes[3].get_title(loc="left").startswith("log-prob of the target")


def test_weights_name_each_player_once(project, figures):
    plots.draw_weights(project.methods()[0])
    legend = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert legend == ["$\\theta_{0}$", "$\\theta_{1}$"]
    first, second = figures[0].axes[1].lines[:2]
    assert columns(first) == ([5, 10], [0.9] * 2)
    assert columns(second) == ([15, 20, 25, 30], [0.9] * 4)


def test_labels_with_dollars_and_values_that_are_not_finite(project):
    team, plain = project.methods()
    row = {**team.runs[0].logs[0], "rewards/target": math.nan, "rewards/margin": math.inf}
    broken = replace(
        team, label="$x_{", runs=(replace(team.runs[0], logs=(row, *team.runs[0].logs[1:])), team.runs[1])
    )
    for picture in (plots.draw_rewards([broken]), plots.draw_summary([broken, plain], "50 $ {")):
        assert picture.startswith(b"\x89PNG")
