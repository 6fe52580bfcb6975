# SPDX-License-Identifier: Apache-2.0
"""Signals become one message, and children end with their parents."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llamafactory_tpaw.errors import EXIT_CODES
from llamafactory_tpaw.lf import signals


KEPT = "What is done is kept: the same command continues.\n"


@pytest.fixture(autouse=True)
def _keep_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def python(script: str) -> subprocess.Popen[str]:
    """Start a script that prints `ready`."""
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


class TestSignals:
    @pytest.mark.parametrize(
        ("number", "text"), [(signal.SIGINT, "interrupted (Ctrl-C)"), (signal.SIGTERM, "terminated (SIGTERM)")]
    )
    def test_end_a_command_with_message_and_code(
        self, number: int, text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(KeyboardInterrupt) as caught, signals.raise_on_signals():
            signal.raise_signal(number)
        assert signals.report(caught.value) == 128 + number
        assert 128 + number in EXIT_CODES
        assert capsys.readouterr().err == f"llamafactory-tpaw: {text}. {KEPT}"

    def test_handlers_are_put_back(self) -> None:
        before = [signal.getsignal(number) for number in signals.SIGNALS]
        with signals.raise_on_signals():
            assert [signal.getsignal(number) for number in signals.SIGNALS] != before
        assert [signal.getsignal(number) for number in signals.SIGNALS] == before

    def test_ignored_ones_stay_ignored(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with signals.raise_on_signals():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    def test_several_at_once_are_one(self) -> None:
        with signals.raise_on_signals():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)

    def test_a_later_one_ends_at_once(self) -> None:
        script = (
            "import signal\nfrom llamafactory_tpaw.lf import signals\n"
            "signals.PATIENCE_S = 0.0\nprint('ready', flush=True)\n"
            "with signals.raise_on_signals():\n"
            "    try:\n        signal.raise_signal(signal.SIGINT)\n"
            "    except KeyboardInterrupt:\n        signal.raise_signal(signal.SIGTERM)\n"
        )
        assert python(script).wait() == 143

    def test_termination_is_deferred(self) -> None:
        with signals.termination_deferred() as termination:
            assert not termination.asked
            signal.raise_signal(signal.SIGTERM)
            assert termination.asked

    def test_what_a_child_has_said_is_not_said_again(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(signals.Terminated) as caught:
            signals.end_like_child(143, "generates")
        assert signals.report(caught.value) == 143
        assert capsys.readouterr().err == ""


class TestChild:
    def test_exit_codes_are_the_shells(self) -> None:
        for script, code in (("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("", 0)):
            assert signals.run_child([sys.executable, "-c", script]) == code

    @pytest.mark.parametrize("deaf", [False, True])
    def test_ends_with_an_interrupted_parent(self, tmp_path: Path, deaf: bool) -> None:
        """Also one that hears neither Ctrl-C nor SIGTERM."""
        ready = tmp_path / "pid"
        script = (
            "import os, signal, sys, time\n"
            f"if {deaf}: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "open(sys.argv[1] + '.new', 'w').write(str(os.getpid()))\nos.rename(sys.argv[1] + '.new', sys.argv[1])\n"
            "time.sleep(60)\n"
        )

        def alarm(*_: object) -> None:
            raise KeyboardInterrupt

        watcher = "import os, signal, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
        subprocess.Popen([sys.executable, "-c", f"{watcher}os.kill({os.getpid()}, signal.SIGUSR1)", str(ready)])
        before = signal.signal(signal.SIGUSR1, alarm)
        try:
            with pytest.raises(KeyboardInterrupt):
                signals.run_child([sys.executable, "-c", script, str(ready)], patience_s=0.2 if deaf else 10.0)
        finally:
            signal.signal(signal.SIGUSR1, before)
        with pytest.raises(ProcessLookupError):
            os.kill(int(ready.read_text()), 0)

    @pytest.mark.skipif(signals.LIBC is None, reason="the system tells a child of its parent's end on Linux only")
    def test_ends_when_its_parent_is_killed(self) -> None:
        child = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n"
        parent = python(
            "import sys\nfrom llamafactory_tpaw.lf import signals\nprint('ready', flush=True)\n"
            f"signals.run_child([sys.executable, '-c', {child!r}])\n"
        )
        process = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        end = time.monotonic() + 10
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
            time.sleep(0.01)
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    def test_termination_goes_to_the_ranks_of_torchrun(self) -> None:
        rank = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(7))\n"
        rank += "print('up', flush=True)\ntime.sleep(60)"
        agent = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {rank!r}]))"
        command = [sys.executable, "-c", agent]
        with signals.started_child(command, through=True, patience_s=20.0, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"up\n"
        assert process.returncode == 7
