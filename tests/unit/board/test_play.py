# SPDX-License-Identifier: Apache-2.0
"""A run of the board: it starts, ends when asked, is killed where it does not, and never outlives the board."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamafactory_tpaw.board import play as module
from llamafactory_tpaw.board.play import Play, as_shown
from llamafactory_tpaw.data.progress import PROGRESS_FILE
from llamafactory_tpaw.errors import ConfigError, EnvironmentProblem
from tests.processes import is_running, members_of


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks processes up in /proc")
TIMEOUT_S = 120
# What stands in for `python -m llamafactory_tpaw run`: `$0` is this file, the run files come last.
SAYS = 'echo "plays $4 and $5"; echo oops >&2; echo "$LLAMAFACTORY_TPAW_PROGRESS"; echo "$EXTRA"; exit 3'
OBEYS = "trap 'echo ends; exit 143' TERM; echo ready; while :; do sleep 0.05; done"
REFUSES = "trap '' TERM; setsid sleep 600 & echo $!; sleep 600 & echo ready; while :; do sleep 0.05; done"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Play]]:
    """Return a function that starts a play whose process is a script of the shell."""
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        Path(f"iter{number}.yaml").write_text(f"stage: tpaw\ntpaw_iteration: {number}\n")
    begun: list[Play] = []

    def start(script: str, **options: object) -> Play:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setattr(module.sys, "executable", str(program))
            begun.append(Play(["iter0.yaml", "iter1.yaml"], ["saves/iter0", "saves/iter1"], **options).start())
        return begun[-1]

    yield start
    for play in begun:
        play._kill()
        assert play.wait(TIMEOUT_S) is not None


def wait_for(happened: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_it_prints_and_how_it_ends_is_kept(start: Callable[..., Play], tmp_path: Path) -> None:
    play = start(SAYS, environment={"EXTRA": "more"})
    assert play.wait(TIMEOUT_S) == play.returncode == 3
    assert not play.running
    place = tmp_path / "saves" / ".tpaw_play"
    assert play.tail == f"plays iter0.yaml and iter1.yaml\noops\n{place / 'iter0.progress.json'}\nmore\n"
    assert (play.log, play.iterations) == (place / "iter0.log", [0, 1])


def test_its_log_and_progress_begin_anew(start: Callable[..., Play]) -> None:
    first = start(SAYS)
    first.wait(TIMEOUT_S)
    first.progress_file.write_text("{}")
    second = start("true")
    assert second.wait(TIMEOUT_S) == 0
    assert second.tail == ""
    assert not second.progress_file.exists()


@linux
def test_abort_asks_and_does_not_wait(start: Callable[..., Play]) -> None:
    play = start(OBEYS)
    wait_for(lambda: "ready" in play.tail)
    assert (play.running, play.returncode, play.aborted) == (True, None, False)
    play.abort()
    assert play.aborted
    assert play.wait(TIMEOUT_S) == 143
    assert play.tail == "ready\nends\n"
    wait_for(lambda: not any(map(is_running, members_of(play._process.pid))))
    play.abort()


@linux
@pytest.mark.parametrize("asks_again", [False, True])
def test_one_that_does_not_end_is_killed_with_its_children(
    start: Callable[..., Play], monkeypatch: pytest.MonkeyPatch, asks_again: bool
) -> None:
    play = start(REFUSES, patience_s=600 if asks_again else 0.2)
    wait_for(lambda: "ready" in play.tail)
    session = play._process.pid
    apart = int(play.tail.split()[0])  # as the training processes that torchrun starts
    assert len(members_of(session)) >= 2
    wait_for(lambda: apart not in members_of(session))
    play.abort()
    if asks_again:
        play.abort()  # the same wish, as a double click
        assert play.running
        monkeypatch.setattr(module, "AGAIN_S", 0.0)
        play.abort()
    assert play.wait(TIMEOUT_S) == 128 + signal.SIGKILL
    wait_for(lambda: not any(map(is_running, [*members_of(session), apart])))


@linux
def test_it_lives_as_long_as_the_board_and_not_as_the_thread_that_asked(tmp_path: Path) -> None:
    """The board is a process of its own here, killed in the end; its child ends as `llamafactory-tpaw` does."""
    child = tmp_path / "child.py"
    child.write_text(
        "import time\nfrom llamafactory_tpaw.lf.signals import end_with_parent\n"
        "end_with_parent()\nprint('ready', flush=True)\ntime.sleep(600)\n"
    )
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {child}\n")
    program.chmod(0o755)
    (tmp_path / "iter0.yaml").write_text("stage: tpaw\ntpaw_iteration: 0\n")
    board = textwrap.dedent(f"""
        import sys, threading
        from llamafactory_tpaw.board.play import Play
        sys.executable = {str(program)!r}
        play = Play(["iter0.yaml"], ["saves/iter0"])
        handler = threading.Thread(target=play.start)
        handler.start()
        handler.join()
        print(play._process.pid, flush=True)
        sys.stdin.read()
    """)
    command = [sys.executable, "-c", board]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, start_new_session=True, **pipes) as process:
        try:
            pid = int(process.stdout.readline())
            log = tmp_path / "saves" / ".tpaw_play" / "iter0.log"
            wait_for(lambda: "ready" in log.read_text())
            assert is_running(pid)
        finally:
            process.kill()
    wait_for(lambda: not is_running(pid))


def test_the_boards_end_asks_it_to_end(start: Callable[..., Play]) -> None:
    play = start(OBEYS)
    wait_for(lambda: "ready" in play.tail)
    play._end_with_board()
    assert (play.running, play.returncode) == (False, 143)


def test_a_program_that_cannot_be_started_is_an_error(start: Callable[..., Play], tmp_path: Path) -> None:
    (tmp_path / "saves").write_text("a file")
    with pytest.raises(EnvironmentProblem, match=r"\.tpaw_play/iter0\.log cannot be written"):
        start("true")
    with pytest.raises(ConfigError, match="1 run files and 0 output folders"):
        Play(["iter0.yaml"], [])


def test_the_tail_is_bounded(start: Callable[..., Play], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAIL_BYTES", 1000)
    monkeypatch.setattr(module, "TAIL_CHARACTERS", 50)
    play = start("for i in $(seq 1000); do echo line $i; done")
    play.wait(TIMEOUT_S)
    assert play.tail.endswith("line 999\nline 1000\n")
    assert len(play.tail) == 50
    monkeypatch.setattr(module, "TAIL_CHARACTERS", 10**6)
    assert play.tail.startswith("line 891\n")


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("  0%|   | 0/2\r 50%|#  | 1/2\r100%|###| 2/2\nnext", "100%|###| 2/2\nnext"),
        ("windows\r\nlines\r\n", "windows\nlines\n"),
        ("half of a bar\r", "half of a bar"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07done\x1b[2K", "red done"),
    ],
)
def test_the_log_is_what_a_terminal_would_show(printed: str, shown: str) -> None:
    assert as_shown(printed) == shown


def test_nothing_that_is_not_seen_reaches_the_page() -> None:
    assert not {"\x00", "\x1b", "\u202e"} & set(as_shown("a\x00b\x1bZ\u202ec"))


def test_the_environment_names_the_progress_file(start: Callable[..., Play]) -> None:
    play = start(f'printf "%s" "{{\\"phase\\": \\"scoring\\"}}" > "${PROGRESS_FILE}"')
    play.wait(TIMEOUT_S)
    assert json.loads(play.progress_file.read_text()) == {"phase": "scoring"}
