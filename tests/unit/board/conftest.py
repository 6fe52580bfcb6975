# SPDX-License-Identifier: Apache-2.0
"""LlamaBoard's own page, built once in this process, and driven without a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafactory_tpaw.hook import start
from tests.unit.board import projects
from tests.unit.board.page import DrivenPage, build_page


start.install()


@pytest.fixture(scope="session")
def built_page(tmp_path_factory: pytest.TempPathFactory) -> DrivenPage:
    """The page; use `page`."""
    pytest.importorskip("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("board"))
        return build_page()


@pytest.fixture
def page(built_page: DrivenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DrivenPage]:
    """The page as it opens, on an empty folder."""
    monkeypatch.chdir(tmp_path)
    built_page.reset()
    yield built_page
    built_page.reset()


@pytest.fixture
def demo(page: DrivenPage) -> DrivenPage:
    """The page on a copy of the project, of whose demo the SFT model and one iteration are there."""
    _copy_demo(page)
    projects.play(projects.committed("tiny_tpaw_iter0"))
    return page


@pytest.fixture
def fresh(page: DrivenPage) -> DrivenPage:
    """The page on a copy of the project with the demo's SFT model and prompts, iteration 0 being filled in."""
    _copy_demo(page)
    Path("data/demo").mkdir()
    Path("data/demo/train.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    page.show(tpaw_run="Tiny/tpaw")
    page.fire("tpaw_run", "input")
    return page


def _copy_demo(page: DrivenPage) -> None:
    projects.copy_project()
    projects.save_model("saves/Tiny/full/sft")
    page.show(top__lang="en", top__model_name="Custom", top__finetuning_type="full", training_stage="TPAW")
