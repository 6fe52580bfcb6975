# SPDX-License-Identifier: Apache-2.0
"""A bar on a terminal, a line now and then elsewhere, nothing for what is short; and a file for who watches."""

from __future__ import annotations

import io
import itertools
import json
import sys
from pathlib import Path

import pytest

from llamafactory_tpaw.data import progress
from llamafactory_tpaw.data.progress import (
    BYTES,
    LINE_EVERY_S,
    PLAYING,
    PROGRESS_FILE,
    REPORT_EVERY_S,
    SILENT,
    Progress,
    Report,
    track,
)


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


@pytest.fixture
def file(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "progress.json"))
    for name in (PLAYING, SILENT):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "progress.json"


def test_a_file_says_how_far_it_is(file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLAYING, "2")
    with Progress("D_0", 400, "prompt", 100, "generation") as shown:
        begun = json.loads(file.read_text())
        clock.now += 10
        shown.update(50)
        later = json.loads(file.read_text())
    fixed = {"phase": "generation", "what": "D_0", "total": 400, "unit": "prompt", "playing": 2}
    assert begun == fixed | {"done": 100, "per_second": None, "seconds_left": None, "ended": False}
    assert later == fixed | {"done": 150, "per_second": 5.0, "seconds_left": 50.0, "ended": False}
    assert json.loads(file.read_text()) == later | {"ended": True}
    assert [path.name for path in file.parent.iterdir()] == ["progress.json"]


def test_the_file_is_written_twice_a_second_and_at_the_end(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(progress, "_replace", lambda _, record: written.append((clock.now, record["done"])))
    with Progress("theta_0", 1000, "sequence", phase="scoring") as shown:
        for _ in range(999):
            clock.now += 1 / 256
            shown.update()
    times = [now for now, _ in written]
    assert written[0] == (1000.0, 0)
    assert written[-1][1] == 999
    assert all(later - earlier >= REPORT_EVERY_S for earlier, later in itertools.pairwise(times[:-1]))
    assert len(written) == 1 + 7 + 1


def test_without_a_name_there_is_no_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROGRESS_FILE)
    assert list(track([1, 2, 3], "reading")) == [1, 2, 3]
    assert not file.exists()


@pytest.mark.parametrize(("name", "value"), [("RANK", "1"), (SILENT, "1")])
def test_only_the_process_that_speaks_writes_it(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert list(track([1, 2, 3], "reading")) == [1, 2, 3]
    assert not file.exists()


def test_a_file_that_cannot_be_written_is_told_once(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gone" / "progress.json"
    monkeypatch.setenv(PROGRESS_FILE, str(path))
    for _ in range(2):
        assert list(track([1, 2, 3], "reading")) == [1, 2, 3]
    said = f"llamafactory-tpaw: warning: how far the work is cannot be written to {path}: No such file or directory.\n"
    assert capsys.readouterr().err == said


def test_the_run_file_that_is_played_can_be_named(file: Path) -> None:
    Report("preparing", "theta_1", playing=1)
    assert json.loads(file.read_text())["playing"] == 1
