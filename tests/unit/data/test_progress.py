# SPDX-License-Identifier: Apache-2.0
"""A bar on a terminal, a line now and then elsewhere, nothing for what is short."""

from __future__ import annotations

import io
import sys

import pytest

from llamafactory_tpaw.data import progress
from llamafactory_tpaw.data.progress import BYTES, LINE_EVERY_S, Progress, track


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.delenv("RANK", raising=False)
    return clock


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("D_0", 400, "prompt", done=100) as shown:
        for _ in range(300):
            clock.now += LINE_EVERY_S / 120
            shown.update()
    assert capsys.readouterr() == (
        "",
        "D_0: 220 of 400 prompts (55%)\nD_0: 340 of 400 prompts (85%)\nD_0: 400 of 400 prompts (100%)\n",
    )


def test_bytes_are_written_as_such(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading theta_0", 3 * 1024**3, BYTES) as shown:
        clock.now += LINE_EVERY_S
        shown.update(1024**3)
        assert capsys.readouterr().err == "reading theta_0: 1.0 of 3.0 GiB (33%)\n"


def test_what_is_short_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2, 3], "reading")) == [1, 2, 3]
    assert list(track([], "reading")) == []
    assert capsys.readouterr() == ("", "")


def test_other_processes_say_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with Progress("D_0", 2, "prompt") as shown:
        clock.now += LINE_EVERY_S
        shown.update()
    assert capsys.readouterr() == ("", "")


def test_an_error_is_not_called_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    rows = track([1, 2], "D_0", "prompt")
    next(rows)
    clock.now += LINE_EVERY_S
    next(rows)
    with pytest.raises(ValueError, match="here"):
        rows.throw(ValueError("here"))
    assert capsys.readouterr().err == "D_0: 1 of 2 prompts (50%)\n"


@pytest.mark.parametrize(("delay", "is_shown"), [(0.0, True), (60.0, False)])
def test_a_terminal_gets_a_bar_after_a_while(delay: float, is_shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "BAR_AFTER_S", delay)
    assert list(track([1, 2, 3], "reading", "prompt")) == [1, 2, 3]
    shown = sys.stderr.getvalue()
    assert ("reading: 100%" in shown and "3/3" in shown) == is_shown
    assert "\n" in shown or not is_shown
