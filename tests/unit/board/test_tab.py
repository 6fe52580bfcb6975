# SPDX-License-Identifier: Apache-2.0
"""The accordions in LlamaBoard's Train tab: where they are, what they offer, and what they show of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.board import charts
from llamafactory_tpaw.board.tab import plot_name
from tests.unit.board.conftest import save_iteration
from tests.unit.board.page import DrivenPage
from tests.unit.board.test_triplets import row


SAVES = Path("saves/Custom/full")


def entry(step: int, **changed: Any) -> dict[str, Any]:
    metrics = {"loss": 1 / step, "rewards/target": step / 10, "rewards/generated": -step / 10, "rewards/margin": 0.5}
    weights = {"weights/player/theta_0": 0.25, "weights/player/theta_1": 0.75}
    return {"current_steps": step, **metrics, "rewards/accuracy": 0.875, **weights, **changed}


@pytest.fixture
def iterations(page: DrivenPage) -> list[charts.Iteration]:
    save_iteration(0, log=[entry(1), entry(2)])
    save_iteration(1, "training", log=[entry(1), entry(2, loss=0.25)])
    save_iteration(10, "training", run="other", log=[entry(1)])
    return charts.read_iterations(SAVES, "play")


def test_each_panel_goes_on_from_iteration_to_iteration(iterations: list[charts.Iteration]) -> None:
    drawn = charts.frames(iterations, "en")
    loss = drawn["loss"].to_dict("list")
    assert loss == {"step": [1, 2, 3, 4], "value": [1.0, 0.5, 1.0, 0.25], "line": ["θ_1", "θ_1", "θ_2", "θ_2"]}
    assert set(charts.frames(iterations, "zh")["rewards"]["line"]) == {"目标回答", "生成回答"}
    weights = drawn["weights/player"]
    assert list(weights[weights["line"] == "θ_1"]["value"]) == [0.75] * 4
    # The page keeps the types of the first table, and draws no line along an axis of words.
    kinds = {str(frame[name].dtype) for frame in charts.frames([], "en").values() for name in ("step", "value")}
    assert kinds == {"int64", "float64"}


def test_a_log_that_is_long_written_or_continued(page: DrivenPage) -> None:
    """The last entry of a step counts; long logs are thinned and keep their end."""
    path = save_iteration(0, "training", log=[entry(1), entry(2), entry(1, loss=9.0)]) / "trainer_log.jsonl"
    path.write_text(path.read_text() + '{"current_steps": 3, "lo')
    assert {step: found["loss"] for step, found in charts.read_log(path).items()} == {1: 9.0, 2: 0.5}
    save_iteration(0, log=[entry(step) for step in range(1, 4 * charts.MOST_POINTS + 2)])
    loss = charts.frames(charts.read_iterations(SAVES, "play"), "en")["loss"]
    assert len(loss) <= charts.MOST_POINTS + 2
    assert loss["step"].max() == 4 * charts.MOST_POINTS + 1


def test_table_has_the_last_values_of_each_iteration(iterations: list[charts.Iteration]) -> None:
    iterations[0].log[2]["eval_rewards/accuracy"] = 0.5
    table = charts.accuracy_table(iterations, "en")
    for cell in ("θ_1", "finished", "87.5 %", "50.0 %", "0.5000", "−0.2000", "θ_2", "not finished", "0.2500", "—"):
        assert f"<td>{cell}</td>" in table
    assert "已完成" in charts.accuracy_table(iterations, "zh")
    assert charts.accuracy_table([], "en") == ""


@pytest.fixture
def played(page: DrivenPage) -> DrivenPage:
    """The page with a run of two iterations on disk, and their triplets."""
    for number in range(2):
        save_iteration(number, log=[entry(1), entry(2)])
    Path("data/tpaw").mkdir()
    for name in ("Custom_play_iter0", "Custom_play_iter1", "other_iter0"):
        Path(f"data/tpaw/{name}.jsonl").write_text("".join(map(row, range(1, 13))))
    return page


def test_sets_of_prompts_are_offered(page: DrivenPage) -> None:
    target = (page.element("tpaw_prompts")._id, "focus")
    (function,) = (each for each in page.blocks.fns.values() if target in each.targets)
    assert function.fn("data").constructor_args["choices"] == ["sums"]


def drawn(page: DrivenPage) -> dict[str, Any]:
    return {panel: page[plot_name(panel)] for panel in charts.PANELS}


def test_results_are_those_of_the_page_s_run(played: DrivenPage) -> None:
    played.fire("tpaw_results_tab", "expand")
    assert played["tpaw_run"] == "play"
    assert "θ_2" in played["tpaw_accuracy"]
    assert [len(frame) for frame in drawn(played).values()] == [4, 8, 4, 4, 8]
    assert played["tpaw_round"] == "Custom_play_iter1.jsonl"
    played.fire("tpaw_round", "change")
    assert "prompt 10 " in played["tpaw_rows"]
    played.fire("tpaw_next")
    assert played["tpaw_page"] == 2
    assert "prompt 11 " in played["tpaw_rows"]
    played.fire("tpaw_prev")
    assert played["tpaw_page"] == 1
    for typed, nearest in ((99, 2), (-3, 1)):
        played.show(tpaw_page=typed)
        played.fire("tpaw_page", "submit")
        assert played["tpaw_page"] == nearest
    played.show(top__lang="ja")
    played.fire("top.lang", "change")
    assert "報酬精度" in played["tpaw_accuracy"]
    assert "目標応答" in played["tpaw_rows"]


@pytest.mark.parametrize("run", [None, "../../..", "/etc", "absent"])
def test_a_run_that_is_not_there_shows_nothing(played: DrivenPage, run: str | None) -> None:
    played.show(tpaw_run=run)
    played.fire("tpaw_run", "change")
    assert (played["tpaw_accuracy"], list(drawn(played).values())) == ("", [None] * 5)
