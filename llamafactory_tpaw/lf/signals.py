# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, SIGTERM and `kill -9`: a message instead of a traceback, and no process left behind."""

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import EXIT_CODES, INTERRUPTED, TERMINATED, TpawError


SIGNALS = (signal.SIGINT, signal.SIGTERM)
TERMINATION_S = 15.0
# A process that trains saves a checkpoint first, to a disk that may be slow.
SAVING_S = 1800.0
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception that takes Ctrl-C's way out."""

    exit_code = TERMINATED


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Turn the first SIGINT into `KeyboardInterrupt` and the first SIGTERM into `Terminated`; for the main thread."""

    def interrupt(number: int) -> None:
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    with _handled(SIGNALS, interrupt):
        yield


@contextlib.contextmanager
def termination_deferred() -> Iterator[threading.Event]:
    """Yield an event that the first SIGTERM sets instead of ending the process; for the main thread."""
    asked = threading.Event()
    with _handled((signal.SIGTERM,), lambda _: asked.set()):
        yield asked


@contextlib.contextmanager
def _handled(numbers: Sequence[signal.Signals], handle: Callable[[int], object]) -> Iterator[None]:
    """Handle the first of these signals and ignore the others: Ctrl-C reaches a child, which its parent then ends.

    A second Ctrl-C ends this process at once.
    """
    before = {number: signal.getsignal(number) for number in numbers}
    # What `nohup` or a shell's `&` ignores stays ignored.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        if len(received) == 1:
            handle(number)
        elif received.count(signal.SIGINT) > 1:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)

    for number in before:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report(error: TpawError | KeyboardInterrupt) -> int:
    """Write to stderr what ended the command, with a traceback where LLAMAFACTORY_VERBOSITY is DEBUG; return its code.

    An interruption is told once: where a child of this package has told it, no more is said.
    """
    code = code_of(error)
    lines = [f"error: {problem}" for problem in getattr(error, "problems", ())]
    if isinstance(error, KeyboardInterrupt) and not getattr(error, "reported", False):
        lines = [f"{EXIT_CODES[code].partition(':')[0]}. What is done is kept: the same command continues."]
    if isinstance(error, TpawError) and os.environ.get("LLAMAFACTORY_VERBOSITY", "").upper() == "DEBUG":
        traceback.print_exception(error)
    sys.stderr.write("".join(f"llamafactory-tpaw: {line}\n" for line in lines))
    sys.stderr.flush()
    return code


def code_of(error: TpawError | KeyboardInterrupt) -> int:
    """The exit code of a process that ends by this."""
    return getattr(error, "exit_code", INTERRUPTED)


def run_child(command: Sequence[str], **options: Any) -> int:
    """Run a command to its end and return its exit code; where this process is interrupted, end it first."""
    with started_child(command, **options) as process:
        return exit_code(process)


@contextlib.contextmanager
def started_child(
    command: Sequence[str], patience_s: float = TERMINATION_S, through: bool = False, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    r"""Start a command, and end it where it still runs when the block is left, or (on Linux) when this thread ends.

    It may take `patience_s` to end by SIGTERM before it is killed. `through` sends the signal to its own children in
    its place: torchrun would leave them 30 seconds. Options are those of `subprocess.Popen`.
    """
    guard = functools.partial(end_with_parent, os.getpid()) if LIBC else None
    process = subprocess.Popen(command, preexec_fn=guard, **options)
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


def end_like_child(code: int) -> None:
    """End this process as the child that generates ended, which has told the reason; 0 lets it go on."""
    if code > 128 and code not in (INTERRUPTED, TERMINATED):
        sys.stderr.write(
            f"llamafactory-tpaw: the process that generates was ended by signal {code - 128}. Signal 9 often means "
            "that the machine ran out of memory; what is done is kept, and the same command continues.\n"
        )
    if code:
        raise SystemExit(code)


def end_with_parent(parent: int | None = None, by: signal.Signals = signal.SIGKILL) -> None:
    """Let the system end this process when its parent, with this id, ends or has ended already; on Linux only."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, by)
        if parent not in (None, os.getppid()):
            os.kill(os.getpid(), by)


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
