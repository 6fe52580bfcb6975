# SPDX-License-Identifier: Apache-2.0
"""A server that is ours: started, waited for, and ended with all that it started."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import signal
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

from ..errors import GenerationError
from ..lf.logs import get_logger
from ..lf.signals import end_with_parent


HOST = "127.0.0.1"
POLL_S, ANSWER_S, SAY_EVERY_S = 0.2, 5.0, 30.0
# What the server has for ending by itself, its processes on the GPUs included.
TERMINATION_S = 20.0
# What the system has for taking away processes that were killed: a driver frees the memory of a device first.
KILL_S = 60.0
TAIL_LINES, LINE_CHARACTERS = 15, 300
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

logger = get_logger(__name__)


class ServerProcess:
    r"""A running server on a port of this machine that no other machine reaches.

    On Linux it is asked to end when the thread that started it is gone, whatever ended that. It takes requests on
    `port` with `api_key`, writes to `log`, and may take `startup_s` seconds until it answers.
    """

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], port: int, api_key: str, log: Path, startup_s: float
    ) -> None:
        self.url, self.api_key, self.log = f"http://{HOST}:{port}/v1", api_key, log
        self.advice = (
            f"This run started it: look at its log {log}, and correct what it says by `tpaw_vllm_args` (arguments of "
            "`vllm serve`) or `tpaw_vllm_command`. The same command continues."
        )
        logger.info_rank0(f"{shlex.join(command)} is started. Log: {log}.")
        log.unlink(missing_ok=True)  # a link that is there is not written through
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C is for the run, which then ends it
                preexec_fn=functools.partial(end_with_parent, os.getpid(), signal.SIGTERM),
            )
        try:
            self._wait(startup_s)
        except BaseException:
            self.close()
            raise

    def _wait(self, startup_s: float) -> None:
        begun = said = time.monotonic()
        while not self._answers():
            self.check()
            now = time.monotonic()
            if now - begun > startup_s:
                raise self._failed(f"did not answer within `tpaw_engine_startup: {startup_s:g}` seconds")
            if now - said > SAY_EVERY_S:
                said, last = now, (self._tail() or ["nothing yet"])[-1]
                logger.info_rank0(f"The server is starting for {now - begun:.0f} s; it says: {last}")
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        # By no proxy: it is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError), opener.open(f"{self.url.removesuffix('/v1')}/health", timeout=ANSWER_S):
            return True
        return False

    def check(self) -> None:
        """Raise GenerationError if it runs no more."""
        if (code := self._process.poll()) is not None:
            raise self._failed(f"ended with exit code {code}")

    def close(self) -> None:
        """End the server and the processes of its session; GenerationError where one cannot be ended."""
        if self._process.poll() is None:
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(TERMINATION_S)
        end = time.monotonic() + KILL_S
        while self._session() and time.monotonic() < end:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(POLL_S / 4)
        if left := self._session():
            raise GenerationError(
                f"Processes {', '.join(map(str, left))} of the server cannot be ended, so the memory of its device "
                "may not be free. End them and start again: finished rows are kept."
            )

    def _session(self) -> list[int]:
        """What lives of it; a zombie waits for its parent alone."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(process.pid) == self._process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def _tail(self) -> list[str]:
        text = ESCAPES.sub("", self.log.read_text(errors="replace")).replace(self.api_key, "***")
        return [line.rstrip()[:LINE_CHARACTERS] for line in text.splitlines() if line.strip()][-TAIL_LINES:]

    def _failed(self, what: str) -> GenerationError:
        said = "".join(f"    {line}\n" for line in self._tail()) or "    (nothing)\n"
        return GenerationError(f"The server at {self.url} {what}; the end of its log:\n{said}{self.advice}")
