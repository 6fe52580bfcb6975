# SPDX-License-Identifier: Apache-2.0
"""The parent of a server: it keeps the server's processes from outliving the process that asked for them.

    python warden.py PARENT SECONDS COMMAND ARGUMENT …

It runs by its path, apart from the package, and imports next to nothing. Its session is its own, so that a terminal's
Ctrl-C does not reach the server; the server's session is another one. It ends the server with all its descendants

- when its standard input ends, or says anything: the process that holds the other end died, or asks for it,
- when its parent is another process than `PARENT`, in case a copy of that other end lives on somewhere,
- at SIGTERM, SIGINT or SIGHUP,
- when the server itself ends, with descendants that it left behind.

They are asked first, and killed after `SECONDS`.

On Linux descendants that lose their parent become the warden's children, whatever session they made for themselves,
and the server is killed when the warden is. The first line on standard output is the server's process id; the exit
code is the server's, 128 + n where signal n ended it.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable


PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
WATCH_S = 1.0
# What the system has for taking away processes that were killed: a driver frees the memory of a device first.
KILL_S = 60.0
NOT_FOUND = 127


def main(arguments: list[str]) -> int:
    """Run a command until it ends or must end, and return its exit code."""
    parent, termination_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    wake, signals = os.pipe()
    for end in (wake, signals):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    _adopt_orphans()
    server = _start(command)
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{server}\n".encode())
    codes: dict[int, int] = {}
    while server not in codes and not _must_end(wake, parent):
        codes |= _reap()
    _end_descendants(server, codes, termination_s)
    code = codes.get(server, -signal.SIGKILL)
    return code if code >= 0 else 128 - code


def end_processes(
    list_processes: Callable[[], Iterable], termination_s: float, reap: Callable[[], object] = lambda: None
) -> list:
    r"""Ask processes to end, kill those that do not, and wait until all are gone.

    Args:
        list_processes: Returns the `psutil.Process` objects that are left.
        termination_s: Seconds between asking and killing.
        reap: Called now and then, for the parent of some of them.

    Returns:
        Those that could not be ended; almost always none.
    """
    import psutil

    asked: set = set()
    asking = time.monotonic() + termination_s
    end = asking + KILL_S
    while True:
        reap()
        left = [process for process in list_processes() if _lives(process)]
        if not left or time.monotonic() > end:
            return left
        for process in left:
            with contextlib.suppress(psutil.Error):
                if time.monotonic() > asking:
                    process.kill()
                elif process not in asked:
                    asked.add(process)
                    process.terminate()
        time.sleep(0.05)


def _lives(process: object) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _end_descendants(server: int, codes: dict[int, int], termination_s: float) -> None:
    try:
        import psutil
    except ImportError:  # the environment was taken away under us
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server, signal.SIGKILL)
        return
    own = psutil.Process()
    known: set = set()

    def descendants() -> set:
        # Where nobody adopts orphans, those are found that were somebody's children before.
        known.update(own.children(recursive=True))
        return known

    end_processes(descendants, termination_s, lambda: codes.update(_reap()))


def _must_end(wake: int, parent: int) -> bool:
    """Wait for something to happen, and tell whether it is a reason to end the server."""
    happened, _, _ = select.select([0, wake], [], [], WATCH_S)
    numbers = os.read(wake, 4096) if wake in happened else b""
    return 0 in happened or any(number != signal.SIGCHLD for number in numbers) or os.getppid() != parent


def _reap() -> dict[int, int]:
    """Take the exit codes of children that have ended, orphans that became children among them."""
    codes = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            codes[pid] = os.waitstatus_to_exitcode(status)
    return codes


def _start(command: list[str]) -> int:
    """Start the server, which ends when this process is killed, and return its process id."""
    prctl = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None
    own = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != own:
            os._exit(128 + signal.SIGKILL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]} cannot be started: {error.strerror}\n".encode())
    os._exit(NOT_FOUND)


def _adopt_orphans() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
