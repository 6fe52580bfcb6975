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

import pytest

from llamafactory_tpaw.errors import EXIT_CODES
from llamafactory_tpaw.lf import signals


KEPT = "What is done is kept: the same command continues.\n"


@pytest.fixture(autouse=True)
def _keep_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(signals.PARENT, raising=False)
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def python(script: str, **env: str) -> subprocess.Popen[str]:
    """Start a script that prints `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )
    assert process.stdout.readline() == "ready\n"
    return process


class TestSignals:
    @pytest.mark.parametrize(
        ("number", "text"), [(signal.SIGINT, "interrupted (Ctrl-C)"), (signal.SIGTERM, "terminated (SIGTERM)")]
    )
    def test_end_a_command_with_message_and_code(
        self, number: int, text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught, signals.reported():
            signal.raise_signal(number)
        assert caught.value.code == 128 + number
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

    @pytest.mark.parametrize("number", signals.SIGNALS)
    def test_during_the_imports_there_is_no_traceback(self, number: int) -> None:
        script = (
            "import time\nfrom llamafactory_tpaw.lf import signals\nsignals.exit_at_signals()\n"
            "print('ready', flush=True)\ntime.sleep(60)\n"
        )
        process = python(script)
        process.send_signal(number)
        assert process.wait(10) == 128 + number
        assert process.stderr.read().endswith(f". {KEPT}")

    def test_handlers_of_others_are_left_alone_during_the_imports(self) -> None:
        with signals.raise_on_signals():
            before = signal.getsignal(signal.SIGTERM)
            signals.exit_at_signals()
            assert signal.getsignal(signal.SIGTERM) is before

    def test_who_is_waited_for_is_silent(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv(signals.PARENT, str(os.getppid()))
        assert signals.report(signals.Terminated()) == 143
        assert capsys.readouterr().err == ""


class TestChild:
    def test_exit_codes_are_the_shells(self) -> None:
        for script, code in (("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("", 0)):
            assert signals.run_child([sys.executable, "-c", script], os.environ) == code

    def test_knows_who_waits_for_it(self) -> None:
        script = "import os, sys; sys.exit(os.environ['LLAMAFACTORY_TPAW_PARENT'] != str(os.getppid()))"
        assert signals.run_child([sys.executable, "-c", script], os.environ) == 0

    @pytest.mark.parametrize("deaf", [False, True])
    def test_ends_with_an_interrupted_parent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool
    ) -> None:
        """Also one that hears neither Ctrl-C nor SIGTERM."""
        monkeypatch.setattr(signals, "TERMINATION_S", 0.2 if deaf else 10.0)
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
                signals.run_child([sys.executable, "-c", script, str(ready)], os.environ)
        finally:
            signal.signal(signal.SIGUSR1, before)
        with pytest.raises(ProcessLookupError):
            os.kill(int(ready.read_text()), 0)

    def test_ends_when_its_parent_is_killed(self) -> None:
        child = (
            "import os, time\nfrom llamafactory_tpaw.lf import signals\nsignals.end_with_parent()\n"
            "print(os.getpid(), flush=True)\ntime.sleep(60)\n"
        )
        parent = python(
            "import os, sys\nfrom llamafactory_tpaw.lf import signals\nprint('ready', flush=True)\n"
            f"signals.run_child([sys.executable, '-c', {child!r}], os.environ)\n"
        )
        pid = int(parent.stdout.readline())
        parent.kill()
        end = time.monotonic() + 10
        while signals._is_alive(pid) and time.monotonic() < end:
            time.sleep(0.01)
        assert not signals._is_alive(pid)

    @pytest.mark.parametrize("asked", [False, True])
    def test_ends_at_once_where_its_parent_is_gone_already(self, asked: bool) -> None:
        """Also where nobody has asked yet how the parent ended, so that its process id still exists."""
        gone = subprocess.Popen([sys.executable, "-c", ""])
        if asked:
            gone.wait()
        else:
            os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
        script = "from llamafactory_tpaw.lf import signals; signals.end_with_parent()"
        environment = os.environ | {signals.PARENT: str(gone.pid)}
        assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 137
        gone.wait()

    def test_a_variable_meant_for_a_process_between_is_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(signals.PARENT, str(os.getpid()))
        script = "from llamafactory_tpaw.lf import signals; signals.end_with_parent()"
        nested = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {script!r}]))"
        assert subprocess.run([sys.executable, "-c", nested], check=False).returncode == 0
