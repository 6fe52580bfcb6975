# SPDX-License-Identifier: Apache-2.0
"""The accordions in LlamaBoard's Train tab: where they are, what they offer, and what they show of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.board.charts import PANELS
from llamafactory_tpaw.board.tab import plot_name
from tests.unit.board.conftest import save_iteration
from tests.unit.board.page import DrivenPage
from tests.unit.board.test_charts import entry
from tests.unit.board.test_triplets import row


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
    return {panel: page[plot_name(panel)] for panel in PANELS}


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
