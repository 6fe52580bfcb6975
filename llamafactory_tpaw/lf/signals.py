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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import EXIT_CODES, INTERRUPTED, TERMINATED


# Set for a child: the process that waits for it, without which it has nothing to do, and which speaks for it.
PARENT = "LLAMAFACTORY_TPAW_PARENT"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C reaches every process of a terminal, and a parent then ends its child as well: of several signals in so many
# seconds the first one counts. Whoever presses Ctrl-C again later wants the process to end at once.
PATIENCE_S = 5.0
TERMINATION_S = 15.0
# A process that trains saves a checkpoint first, to a disk that may be slow.
SAVING_S = 1800.0
WATCH_S = 1.0
PR_SET_PDEATHSIG = 1
KILLED = 137  # as a shell says it of a process that SIGKILL ended


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception that takes Ctrl-C's way out."""


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Turn the first SIGINT into `KeyboardInterrupt` and the first SIGTERM into `Terminated`; for the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None

    def interrupt(number: int, _: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if time.monotonic() - first > PATIENCE_S:
            os._exit(128 + number)

    # What `nohup` or a shell's `&` ignores stays ignored.
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Termination:
    r"""What `termination_deferred` yields.

    Attributes:
        asked: Whether SIGTERM came.
    """

    asked: bool = False


@contextlib.contextmanager
def termination_deferred() -> Iterator[Termination]:
    """Note the first SIGTERM instead of ending by it, until the block is left; for the main thread."""
    termination = Termination()
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield termination
        return
    first = 0.0

    def note(number: int, _: FrameType | None) -> None:
        nonlocal first
        if not termination.asked:
            termination.asked, first = True, time.monotonic()
        elif time.monotonic() - first > PATIENCE_S:
            os._exit(128 + number)

    signal.signal(signal.SIGTERM, note)
    try:
        yield termination
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    r"""End a command with the message and the exit code where a signal stops it.

    Raises:
        SystemExit: Then.
    """
    try:
        with raise_on_signals():
            yield
    except KeyboardInterrupt as stop:
        raise SystemExit(report(stop)) from None


def exit_at_signals() -> None:
    """While modules are still being imported, end at once with the message; nothing is at work yet."""

    def end(number: int, _: FrameType | None) -> None:
        if not is_waited_for():
            os.write(2, _message(128 + number).encode())
        os._exit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) is default:
                signal.signal(number, end)


def report(stop: KeyboardInterrupt, silent: bool = False) -> int:
    r"""Say that what is done is kept, unless the process that waits for this one says it.

    Args:
        stop: What ended the work.
        silent: Whether another process says it.

    Returns:
        The exit code.
    """
    code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    if not silent and not is_waited_for():
        sys.stderr.write(_message(code))
        sys.stderr.flush()
    return code


def _message(code: int) -> str:
    line = "\n" if sys.stderr.isatty() else ""  # off the line of a progress bar
    what = EXIT_CODES[code].partition(":")[0]
    return f"{line}llamafactory-tpaw: {what}. What is done is kept: the same command continues.\n"


def is_waited_for() -> bool:
    """Whether this process was started by `run_child`."""
    return os.environ.get(PARENT) == str(os.getppid())


def run_child(
    command: Sequence[str], environment: Mapping[str, str], patience_s: float | None = None, **streams: Any
) -> int:
    r"""Run a command to its end; where this process is interrupted, end it first.

    Args:
        command: Program and arguments. A program of this package ends when this process is killed, see
            `end_with_parent`.
        environment: Its environment.
        patience_s: How long it may take to end when it is asked to, before it is killed; by default a moment.
        streams: `stdout` and `stderr`, as `subprocess.Popen` takes them.

    Returns:
        Its exit code, 128 + n where signal n ended it.
    """
    with started_child(command, environment, patience_s, **streams) as process:
        return exit_code(process)


@contextlib.contextmanager
def started_child(
    command: Sequence[str], environment: Mapping[str, str], patience_s: float | None = None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    r"""Start a command, and end it where it still runs when the block is left.

    The thread that starts it must live as long: a child ends with it, see `end_with_parent`.

    Args:
        command: Program and arguments.
        environment: Its environment.
        patience_s: How long it may take to end when it is asked to, before it is killed; by default a moment.
        options: Of `subprocess.Popen`.
    """
    process = subprocess.Popen(command, env={**environment, PARENT: str(os.getpid())}, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            _end(process, TERMINATION_S if patience_s is None else patience_s)


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for a child and return its exit code, 128 + n where signal n ended it."""
    code = process.wait()
    return code if code >= 0 else 128 - code


def end_like_child(code: int, warn: Callable[[str], object]) -> None:
    r"""End this process as the child ended that generates for it; 0 lets it go on.

    Args:
        code: Its exit code. It has told the reason itself, unless a signal ended it.
        warn: Told so then.

    Raises:
        KeyboardInterrupt: If the child was interrupted or terminated.
        SystemExit: With its code, if it failed.
    """
    if code == TERMINATED:
        raise Terminated
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code > 128:
        warn(
            f"The process that generates was ended by signal {code - 128}. Signal 9 without your doing is the "
            "system's want of memory. What is done is kept: the same command continues."
        )
    if code != 0:
        raise SystemExit(code)


def _end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Ask, and where that does not help, kill. One that ends by the same Ctrl-C already does not mind being asked."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_with_parent() -> None:
    r"""End this process when the one that waits for it is killed, so that none works on unseen.

    Raises:
        SystemExit: If it is gone already.
    """
    parent = os.environ.get(PARENT)
    if parent is None or (os.getppid() != int(parent) and _is_alive(int(parent))):
        return  # nobody waits, or the variable was meant for a process between
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    if os.getppid() != int(parent):
        raise SystemExit(KILLED)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os._exit(KILLED)


def _is_alive(pid: int) -> bool:
    """Whether the process still runs; one that has ended waits as a zombie until its own parent asks how."""
    try:
        os.kill(pid, 0)
        if not sys.platform.startswith("linux"):
            return True
        # The state is the first field after the name, which may hold anything.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in ("Z", "X")
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return True
