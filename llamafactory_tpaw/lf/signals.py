# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, SIGTERM and `kill -9`: a message instead of a traceback, and no process left behind."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ..errors import EXIT_CODES, INTERRUPTED, TERMINATED, TpawError


SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C reaches every process of a terminal, and a parent then ends its child as well: of several signals in so many
# seconds the first one counts. A later one ends the process at once.
PATIENCE_S = 5.0
TERMINATION_S = 15.0
# A process that trains saves a checkpoint first, to a disk that may be slow.
SAVING_S = 1800.0
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception that takes Ctrl-C's way out."""


@dataclass
class Termination:
    """What `termination_deferred` yields: whether SIGTERM came."""

    asked: bool = False


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Turn the first SIGINT into `KeyboardInterrupt` and the first SIGTERM into `Terminated`; for the main thread."""

    def interrupt(number: int) -> None:
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    with _handled(SIGNALS, interrupt):
        yield


@contextlib.contextmanager
def termination_deferred() -> Iterator[Termination]:
    """Note the first SIGTERM instead of ending by it, until the block is left; for the main thread."""
    termination = Termination()

    def note(number: int) -> None:
        termination.asked = True

    with _handled((signal.SIGTERM,), note):
        yield termination


@contextlib.contextmanager
def _handled(numbers: Sequence[signal.Signals], handle: Any) -> Iterator[None]:
    """Handle the first of these signals; one that comes `PATIENCE_S` later or more ends the process."""
    # What `nohup` or a shell's `&` ignores stays ignored.
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    first: float | None = None

    def receive(number: int, _: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            handle(number)
        elif time.monotonic() - first > PATIENCE_S:
            os._exit(128 + number)

    for number in before:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report(error: TpawError | KeyboardInterrupt) -> int:
    r"""Write to stderr what ended the command: every problem, or that what is done is kept.

    A traceback of an error is shown where LLAMAFACTORY_VERBOSITY is DEBUG.

    Returns:
        The exit code.
    """
    if isinstance(error, KeyboardInterrupt):
        code = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        if not getattr(error, "reported", False):
            line = "\n" if sys.stderr.isatty() else ""  # off the line of a progress bar
            what = EXIT_CODES[code].partition(":")[0]
            sys.stderr.write(f"{line}llamafactory-tpaw: {what}. What is done is kept: the same command continues.\n")
    else:
        code = error.exit_code
        if os.environ.get("LLAMAFACTORY_VERBOSITY", "").upper() == "DEBUG":
            import traceback

            traceback.print_exception(error)
        for message in error.problems:
            sys.stderr.write(f"llamafactory-tpaw: error: {message}\n")
    sys.stderr.flush()
    return code


def run_child(command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any) -> int:
    r"""Run a command to its end; where this process is interrupted, end it first, see `started_child`.

    Returns:
        Its exit code, 128 + n where signal n ended it.
    """
    with started_child(command, environment, **options) as process:
        return exit_code(process)


@contextlib.contextmanager
def started_child(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    patience_s: float = TERMINATION_S,
    through: bool = False,
    **options: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    r"""Start a command, and end it where it still runs when the block is left.

    On Linux it is killed when the thread that starts it ends, `kill -9` included, so that none works on unseen.

    Args:
        command: Program and arguments.
        environment: Its environment.
        patience_s: How long it may take to end by SIGTERM before it is killed.
        through: Whether SIGTERM goes to its own children in its place: torchrun would leave them 30 seconds.
        options: Of `subprocess.Popen`.
    """
    guard = None if LIBC is None else end_with_parent
    process = subprocess.Popen(command, env=environment, preexec_fn=guard, **options)
    try:
        yield process
    except KeyboardInterrupt as stop:
        _end(process, patience_s, through)
        stop.reported = exit_code(process) in (INTERRUPTED, TERMINATED)  # a child of this package said so itself
        raise
    finally:
        _end(process, patience_s, through)


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for a child and return its exit code, 128 + n where signal n ended it."""
    code = process.wait()
    return code if code >= 0 else 128 - code


def end_like_child(code: int, what: str) -> None:
    r"""End this process as the child ended on whose result it depends; 0 lets it go on.

    Args:
        code: Its exit code. It has told the reason itself, unless a signal ended it.
        what: What it did, for the message then.

    Raises:
        KeyboardInterrupt: If the child was interrupted or terminated.
        SystemExit: With its code, if it failed.
    """
    if code in (INTERRUPTED, TERMINATED):
        stop = Terminated() if code == TERMINATED else KeyboardInterrupt()
        stop.reported = True
        raise stop
    if code > 128:
        sys.stderr.write(
            f"llamafactory-tpaw: the process that {what} was ended by signal {code - 128}. Signal 9 often means that "
            "the machine ran out of memory; what is done is kept, and the same command continues.\n"
        )
    if code != 0:
        raise SystemExit(code)


def end_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Let the system end this process when its parent ends; on Linux only."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, by)


def _end(process: subprocess.Popen[bytes], patience_s: float, through: bool) -> None:
    """Ask, and where that does not help, kill."""
    if process.poll() is not None:
        return
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children() if through else []
        for asked in children or [process]:
            asked.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
