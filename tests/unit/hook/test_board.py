# SPDX-License-Identifier: Apache-2.0
"""LlamaBoard's seams: on modules that are not as expected, and a page that has to do without the tab."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llamafactory_tpaw.hook import board
from llamafactory_tpaw.hook.shape import SeamMissing
from llamafactory_tpaw.lf import status

from .conftest import fake


def runner(**changed: Any) -> dict[str, Any]:
    """A module like the one of LlamaBoard's `Runner`, as it was before it was extended."""
    kind = pytest.importorskip("llamafactory.webui.runner").Runner
    names = {name: getattr(value, "__wrapped__", value) for name, value in vars(kind).items() if callable(value)}
    return {"Runner": type("Runner", (), {name: value for name, value in (names | changed).items() if value})}


@pytest.mark.parametrize(
    ("extend", "names", "message"),
    [
        (board.extend_words, {}, "`LOCALES` is not a dict of texts by language"),
        (board.extend_words, {"LOCALES": []}, "`LOCALES` is not a dict of texts by language"),
        (
            board.extend_words,
            {"LOCALES": {"learning_rate": {"en": {}}, "tpaw_eta": {}}},
            "it has texts for tpaw_eta already",
        ),
        (board.extend_train_tab, {}, "no function `create_train_tab`"),
        (board.extend_train_tab, {"create_train_tab": lambda engine: engine}, "no longer refers to"),
        (board.extend_train_tab, {"create_train_tab": lambda page: page}, "takes \\(page\\) instead of \\(engine,"),
        (board.extend_runner, {}, "no class `Runner`"),
        (board.extend_runner, {"__init__": lambda self, manager: None}, "no longer refers to `trainer`"),
        (board.extend_runner, {"monitor": lambda self, other: other}, "`monitor` takes more than \\(self\\)"),
        *((board.extend_runner, {name: None}, f"no function `{name}`") for name in board.METHODS),
        *((board.extend_runner, {name: lambda other: other}, f"`{name}` takes") for name in board.METHODS),
    ],
)
def test_what_differs_is_named_and_left_alone(
    extend: Callable[[ModuleType], None], names: dict[str, Any], message: str
) -> None:
    module = fake(**(runner(**names) if names and extend is board.extend_runner else names))
    kind = vars(module).get("Runner")
    before = dict(vars(module)), dict(vars(kind)) if kind else {}
    with pytest.raises(SeamMissing, match=message):
        extend(module)
    assert (dict(vars(module)), dict(vars(kind)) if kind else {}) == before


def test_page_opens_without_the_tab_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = pytest.importorskip("tests.unit.board.page")
    status.require_seams()
    seam = status.SeamStatus("board_runner", "a.Runner", "Start", False, "missing", "there is no `Runner`")
    monkeypatch.setitem(status.RECORD, "board_runner", seam)
    status.require_seams()  # training hears nothing of it
    monkeypatch.chdir(tmp_path)
    built = page.build_page()
    assert not [name for name in built.manager._id_to_elem if "tpaw" in name]
    shown = [block for block in built.blocks.blocks.values() if block.elem_id == "tpaw_missing"]
    assert "seam `board_runner`, `a.Runner` (Start): there is no `Runner`" in shown[0].value

    built.show(top__lang="en", top__model_name="Custom", top__model_path="theta", dataset=["one"], output_dir="out")
    assert "--stage sft" in built.fire("cmd_preview_btn")
