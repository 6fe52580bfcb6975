# SPDX-License-Identifier: Apache-2.0
"""LlamaBoard's own page, built once in this process, and driven without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafactory_tpaw import _hook
from tests.unit.board.page import DrivenPage, build_page


_hook.install()


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
