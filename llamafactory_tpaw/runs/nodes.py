# SPDX-License-Identifier: Apache-2.0
"""Several machines: node 0 generates, and the others wait for its triplets before they start torchrun.

Beside the triplets node 0 keeps a file that changes while it works and says in the end what became of it. The others
look whether it changes: one that an earlier attempt left does not. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data.files import read_json, write_json_atomic
from ..data.rounds import Round
from ..errors import INTERRUPTED, TERMINATED, DataError, EnvironmentProblem, TpawError
from ..lf.logs import get_logger
from ..lf.signals import Terminated


BEAT_S = 5.0
POLL_S = 1.0
# Machines of a job may start minutes apart, and a file system shows a new file late.
PATIENCE_S = 600.0
REMINDER_S = 300.0

logger = get_logger(__name__)


def node_rank() -> int | None:
    """Number of this machine as LlamaFactory reads it; None where the run has only one."""
    if not any(_number(name) > 1 for name in ("NNODES", "MAX_NNODES")):
        return None
    return _number("NODE_RANK")


def _number(name: str) -> int:
    value = os.environ.get(name, "0")
    return int(value) if value.isdigit() else 0


@contextlib.contextmanager
def others_told(rounds: Sequence[Round]) -> Iterator[None]:
    r"""On node 0: show the other nodes that triplets are being made, and in the end what became of it.

    Args:
        rounds: Rounds that are to be generated.
    """
    signs = [_sign(round_.path) for round_ in rounds]
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(signs, done), daemon=True)
    state: dict[str, Any] = {"state": "failed", "exit_code": 1, "problems": []}
    try:
        beating.start()
        yield
        state = {"state": "done"}
    except TpawError as error:
        state |= {"exit_code": error.exit_code, "problems": error.problems}
        raise
    except SystemExit as stop:
        state |= {"exit_code": stop.code}
        raise
    except KeyboardInterrupt as stop:
        state |= {"exit_code": TERMINATED if isinstance(stop, Terminated) else INTERRUPTED}
        raise
    finally:
        done.set()
        beating.join()
        for sign in signs:
            if state["state"] == "done":
                sign.unlink(missing_ok=True)
            else:
                write_json_atomic(sign, _own(state))


def wait_for_triplets(rounds: Sequence[Round], tell: Callable[[str], object] = logger.info_rank0) -> None:
    r"""On another node: wait until node 0 has made the triplets.

    Args:
        rounds: Rounds that are to be generated.
        tell: Told what is waited for.

    Raises:
        TpawError: If node 0 failed, or shows no sign of life.
    """
    for round_ in rounds:
        _wait(round_, tell)


def _wait(round_: Round, tell: Callable[[str], object]) -> None:
    sign = _sign(round_.path)
    first = seen = _read(sign)
    tell(
        f"{round_.path}: node 0 (NODE_RANK=0) generates it; this node (NODE_RANK={node_rank()}) waits for it on the "
        "shared file system, then starts its training processes."
    )
    begun = changed = told = time.monotonic()
    while not round_.complete:
        now, found = time.monotonic(), _read(sign)
        if found != seen:
            seen, changed = found, now
        if seen != first and seen and seen["state"] == "failed":
            raise _failure(round_, seen)
        if now - changed > PATIENCE_S:
            raise _silence(round_, sign, seen, now - changed)
        if now - told > REMINDER_S:
            told = now
            where = f"at work on {seen['host']}" if seen and seen != first else "not seen yet"
            tell(f"{round_.path}: waited for {(now - begun) / 60:.0f} minutes; node 0 is {where}.")
        time.sleep(POLL_S)


def _failure(round_: Round, said: dict[str, Any]) -> TpawError:
    why = " ".join(said["problems"]) or f"Its output says why (exit code {said['exit_code']})."
    error = DataError(f"{round_.path} is not made: node 0 ({said['host']}) failed. {why}")
    error.exit_code = said["exit_code"]
    return error


def _silence(round_: Round, sign: Path, said: dict[str, Any] | None, seconds: float) -> TpawError:
    last = f" What an earlier attempt on {said['host']} left there does not change." if said else ""
    return EnvironmentProblem(
        f"{round_.path} is waited for, but node 0 has shown no sign of life there for {seconds:.0f} s (it would "
        f"write {sign}).{last} `dataset_dir` must be on a file system that all nodes share, and node 0 must be "
        "started with NODE_RANK=0 and the same settings. Look at its output; the same command continues."
    )


def _beat(signs: Sequence[Path], done: threading.Event) -> None:
    beat = 0
    while True:
        for sign in signs:
            write_json_atomic(sign, _own({"state": "working", "beat": beat}))
        beat += 1
        if done.wait(BEAT_S):
            return


def _own(state: dict[str, Any]) -> dict[str, Any]:
    """With who says it and when, so that no two attempts write the same."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()} | state


def _sign(path: Path) -> Path:
    return path.with_name(f".{path.name}.node0.json")


def _read(sign: Path) -> dict[str, Any] | None:
    try:
        return read_json(sign) if sign.is_file() else None
    except DataError:
        return None  # it is being replaced
