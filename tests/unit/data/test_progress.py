# SPDX-License-Identifier: Apache-2.0
"""A line now and then in a log, nothing for what is short."""

from __future__ import annotations

import pytest

from llamafactory_tpaw.data import progress
from llamafactory_tpaw.data.progress import BYTES, Progress


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def show(capsys: pytest.CaptureFixture[str]) -> str:
    with Progress("D_0", 400, "prompt", done=100) as shown:
        shown.update(120)
        shown.update(180)
    return capsys.readouterr().err


def test_a_log_gets_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(capsys) == ""  # what is short says nothing
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    said = show(capsys)
    assert "D_0: 220 of 400 prompts (55%, " in said
    assert "D_0: 400 of 400 prompts (100%, 00:00 left)\n" in said
    with Progress("D_1", 4) as shown:
        shown.update(0)
        assert "D_1: 0 of 4 rows (0%, ? left)\n" in capsys.readouterr().err, "where no row is done for long"
    with Progress("reading theta_0", 3 * 1024**3, BYTES) as shown:
        shown.update(1024**3)
    assert "reading theta_0: 1.00G of 3.00GB (33%, " in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert show(capsys) == ""
