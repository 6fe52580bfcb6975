# SPDX-License-Identifier: Apache-2.0
"""Signals become one message, and children end with their parents."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

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

    def test_handlers_are_put_back_and_ignored_ones_stay_ignored(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        before = signal.getsignal(signal.SIGTERM)
        with signals.raise_on_signals():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) != before
        assert [signal.getsignal(number) for number in signals.SIGNALS] == [signal.SIG_IGN, before]

    def test_several_are_one(self) -> None:
        with signals.raise_on_signals():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    def test_a_second_ctrl_c_ends_it_at_once(self) -> None:
        script = (
            "import signal\nfrom llamafactory_tpaw.lf import signals\n"
            "with signals.raise_on_signals():\n"
            "    try:\n        signal.raise_signal(signal.SIGINT)\n"
            "    except KeyboardInterrupt:\n        signal.raise_signal(signal.SIGINT)\n"
            "print('still here')"
        )
        child = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
        assert (child.returncode, child.stdout) == (-signal.SIGINT, b"")

    def test_a_child_that_generates_has_told_why_unless_a_signal_ended_it(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        signals.end_like_child(0)
        for code in (143, 3, 137):
            assert capsys.readouterr().err == ""
            with pytest.raises(SystemExit) as caught:
                signals.end_like_child(code)
            assert caught.value.code == code
        assert "ended by signal 9" in capsys.readouterr().err


class TestChild:
    @pytest.mark.skipif(signals.LIBC is None, reason="Linux only")
    def test_starts_after_its_parent_ended(self) -> None:
        guard = functools.partial(signals.end_with_parent, os.getppid())  # as if this process had ended before
        assert subprocess.run(["sleep", "9"], preexec_fn=guard, check=False).returncode == -signal.SIGKILL

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

        def interrupt() -> None:
            while not ready.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            signals.run_child([sys.executable, "-c", script, str(ready)], patience_s=0.2 if deaf else 10.0)
        with pytest.raises(ProcessLookupError):
            os.kill(int(ready.read_text()), 0)
