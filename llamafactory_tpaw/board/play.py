# SPDX-License-Identifier: Apache-2.0
"""A run that the board started: `llamafactory-tpaw run` in a process of its own, and what it says."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from ..data.progress import PROGRESS_FILE
from ..errors import ConfigError, EnvironmentProblem
from ..lf.given import read_given
from ..lf.signals import SAVING_S, exit_code, started_child
from .text import plain


PLACE = ".tpaw_play"
WARDEN = "warden.py"
# Asked to end, a run finishes its step and saves a checkpoint, and a managed server gives its memory back.
PATIENCE_S = SAVING_S + 60.0
# Whoever asks again after so long wants the end at once.
AGAIN_S = 10.0
# So long the board's own end waits for a run to end well, before it is killed with the board.
EXIT_S = 10.0
TAIL_BYTES = 256 * 1024
TAIL_CHARACTERS = 20_000
# What a terminal would obey: colours, titles, the cursor.
TERMINAL = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-_])")


class Play:
    r"""Iterations that are played one after the other, from `start` until their process has ended.

    LLAMABOARD_ENABLED is not set for the process: LlamaFactory would then keep a log file of its own, that of
    training alone, and take SIGABRT for a stop after the next step, which neither generation nor scoring sees. Here
    one file gets everything that all parts print, and one signal, SIGTERM, ends all of them.

    Args:
        files: Run files, in the order in which they are played.
        folders: The `output_dir` of each.
        environment: What the process gets beside this one's environment, as FORCE_TORCHRUN.
        place: Folder for the log and the progress file; by default `.tpaw_play` beside the first output folder.
        patience_s: How long the run may take to end when it is asked to, before all its processes are killed.

    Attributes:
        settings: What each file says.
        iterations: Number of the iteration of each file; None for one of another stage.
        log: File with all that was printed.
        progress_file: What `data.progress.Report` writes.
        aborted: Whether `abort` was called.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        folders: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        place: str | Path | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        if not files or len(files) != len(folders):
            raise ConfigError(f"{len(files)} run files and {len(folders)} output folders. Give one folder a file.")
        self.files, self.folders = [str(file) for file in files], [Path(folder) for folder in folders]
        self.settings = [read_given([file]) for file in self.files]
        numbers = [given.get("tpaw_iteration") for given in self.settings]
        self.iterations = [None if number is None else int(number) for number in numbers]
        folder = Path(place or self.folders[0].parent / PLACE).absolute()
        self.log = folder / f"{self.folders[0].name}.log"
        self.progress_file = folder / f"{self.folders[0].name}.progress.json"
        self.aborted = False
        self._environment = {**os.environ, **(environment or {}), PROGRESS_FILE: str(self.progress_file)}
        self._patience_s = patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self._code: int | None = None
        self._error: OSError | None = None
        self._asked_at = 0.0
        self._began = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="tpaw-play", daemon=True)

    def start(self) -> Play:
        r"""Start the process; it is killed when this process ends, also when this one is killed.

        A thread of its own starts it and waits for its end: on Linux a child dies with the *thread* that started it,
        and those that serve the page come and go.

        Raises:
            EnvironmentProblem: If it cannot be started, or the log cannot be written.
        """
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.progress_file.unlink(missing_ok=True)
            self.log.write_bytes(b"")
        except OSError as error:
            raise EnvironmentProblem(f"{self.log} cannot be written ({error.strerror}). Free or open it.") from error
        self._thread.start()
        self._began.wait()
        if self._error is not None:
            raise EnvironmentProblem(f"The run cannot be started: {self._error}.") from self._error
        atexit.register(self._end_with_board)
        return self

    def _keep(self) -> None:
        command = [sys.executable, "-m", "llamafactory_tpaw", "run", *self.files]
        try:
            with (
                self.log.open("ab") as stream,
                started_child(
                    command,
                    self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                ) as self._process,
            ):
                self._began.set()
                self._code = exit_code(self._process)
        except OSError as error:
            self._error = error
        finally:
            self._began.set()
            atexit.unregister(self._end_with_board)

    @property
    def running(self) -> bool:
        """Whether its process still works, or still ends."""
        return self._thread.is_alive()

    @property
    def returncode(self) -> int | None:
        """Exit code of the process, 128 + n where signal n ended it; None while it runs."""
        return self._code

    @property
    def tail(self) -> str:
        """The end of what was printed, as a terminal would show it, without what only a terminal understands."""
        try:
            with self.log.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, size - TAIL_BYTES))
                text = stream.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        if size > TAIL_BYTES:
            text = text.partition("\n")[2]
        return as_shown(text)[-TAIL_CHARACTERS:]

    def abort(self) -> None:
        """Ask the run to end and return at once; kill it when its patience is over, or when asked again later."""
        with self._lock:
            if not self.running or self._process is None:
                return
            if self.aborted:
                if time.monotonic() - self._asked_at > AGAIN_S:
                    self._kill()
                return
            self.aborted, self._asked_at = True, time.monotonic()
            self._process.terminate()
            threading.Thread(target=self._lose_patience, name="tpaw-abort", daemon=True).start()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the end and return the exit code; None where it takes longer."""
        self._thread.join(timeout_s)
        return self._code

    def _lose_patience(self) -> None:
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            self._kill()

    def _kill(self) -> None:
        """Kill all its processes at once: its session, and descendants that have one of their own."""
        if self._process is None or self._process.poll() is not None:
            return
        others = _descendants(self._process.pid)
        os.killpg(self._process.pid, signal.SIGKILL)
        for process in others:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _end_with_board(self) -> None:
        self.abort()
        self._thread.join(EXIT_S)


def _descendants(pid: int) -> list[psutil.Process]:
    """Children of a process and theirs, but for a server's: who looks after it ends it when left alone."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children():
            if not any(word.endswith(WARDEN) for word in child.cmdline()[:3]):
                found += [child, *_descendants(child.pid)]
    return found


def as_shown(text: str) -> str:
    """Return what a terminal would show of a text: of a line that was overwritten only the last state, no colours."""
    lines = TERMINAL.sub("", text).replace("\r\n", "\n").split("\n")
    return plain("\n".join(map(_last_state, lines)))


def _last_state(line: str) -> str:
    return next((state for state in reversed(line.split("\r")) if state.strip()), "")
