# SPDX-License-Identifier: Apache-2.0
"""torchrun as a command of stage `tpaw` starts it: `python -m llamafactory_tpaw.hook.torchrun ARGUMENTS`.

It ends with the command, however that ends, and its ranks with it. SIGTERM goes to the ranks at once, and torchrun's
own way to end them, which leaves them 30 seconds, is taken only when they are done with it: they save a checkpoint.
Which rank failed, and how, is left where the command finds it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import psutil

from ..lf import signals
from .ranks import Failure, leave_failure


POLL_S = 0.05
SIGNALLED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class SignalHandler:
    r"""What torchrun does by a signal.

    Args:
        end: Its own handler, which raises an exception by which it ends its ranks.
    """

    def __init__(self, end: Callable[[int, FrameType | None], None]) -> None:
        self.end = end
        self.first: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Let the ranks finish what SIGTERM lets them finish; a second one ends the patience."""
        if self.first is None and number == signal.SIGTERM:
            self.first = time.monotonic()
            _let_ranks_finish(number)
        elif self.first is not None and time.monotonic() - self.first < signals.PATIENCE_S:
            return  # the same signal on another way
        self.end(number, frame)


def main(arguments: list[str]) -> int:
    """Do what `torchrun` does with these arguments and return its exit code, 128 + n where signal n ended it."""
    signals.end_with_parent()
    os.environ[signals.PARENT] = str(os.getpid())
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if hasattr(api, "_terminate_process_handler"):
        api._terminate_process_handler = SignalHandler(api._terminate_process_handler)
    if run.parse_args(arguments).max_restarts > 0:
        # Ranks that are started again would meet in the store of the first ones, and read where those were.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    try:
        run.main(arguments)
    except ChildFailedError as error:
        rank, failure = _first(error.failures)
        leave_failure(Failure(rank, failure.exitcode, failure.pid, socket.gethostname()))
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except api.SignalException as stop:
        return 128 + stop.sigval
    return 0


def _first(failures: Mapping[int, Any]) -> tuple[int, Any]:
    """The failure that caused the others: of several at once one by a signal, which no other rank's failure sends."""
    return min(
        failures.items(),
        key=lambda each: (each[1].exitcode >= 0 or -each[1].exitcode in SIGNALLED, each[1].timestamp, each[0]),
    )


def _let_ranks_finish(number: int) -> None:
    """Pass a signal on to the ranks and wait until all have ended, or one ended otherwise than by the signal."""
    ranks = psutil.Process().children()
    for rank in ranks:
        try:
            rank.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    end = time.monotonic() + signals.SAVING_S
    while time.monotonic() < end:
        codes = [_code(rank.pid) for rank in ranks]
        if None not in codes or any(code not in (None, 0, 128 + number, -number) for code in codes):
            return
        time.sleep(POLL_S)


def _code(pid: int) -> int | None:
    """How a child ended, which torchrun will ask again; None while it runs."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0  # torchrun has asked
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
