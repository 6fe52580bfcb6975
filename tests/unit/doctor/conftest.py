# SPDX-License-Identifier: Apache-2.0
"""Packages made up for a test, which an interpreter started by it imports instead of the installed ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that writes modules, by dotted name, in front of the installed ones."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def write(**sources: str) -> Path:
        for name, source in sources.items():
            path = folder.joinpath(*name.split("."))
            path.mkdir(parents=True, exist_ok=True)
            (path / "__init__.py").write_text(source, encoding="utf-8")
        return folder

    return write
