# SPDX-License-Identifier: Apache-2.0
"""The processes that torchrun starts for a command: how they agree, and how what ends one reaches the command.

torchrun itself ends with 1, whatever happened.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import CalledProcessError
from types import ModuleType
from typing import Any

from ..errors import INTERRUPTED, TERMINATED, ConfigError, TpawError
from ..lf import signals


# Set by the command for the processes that it starts: the file in which one of them writes its error.
ERROR_FILE = "LLAMAFACTORY_TPAW_ERROR_FILE"
FAILURE_ENDING = ".failure"
TORCHRUN = "llamafactory_tpaw.hook.torchrun"
DECISION = "llamafactory_tpaw/decision"


@dataclass(frozen=True)
class Failure:
    r"""How the first of the ranks that failed ended.

    Attributes:
        rank: Its number among all, from 0.
        exit_code: As `subprocess` has it: -n where signal n ended it.
        pid: Its process.
        host: Where.
    """

    rank: int
    exit_code: int
    pid: int
    host: str

    @property
    def by_signal(self) -> int | None:
        """The signal that ended it, unless it was one that asks."""
        number = -self.exit_code
        return number if number > 0 and number not in (signal.SIGTERM, signal.SIGINT) else None

    def explain(self) -> TpawError:
        """Return the error of the command."""
        who = f"Rank {self.rank} (process {self.pid} on {self.host})"
        kept = "All ranks were ended. What is done is kept: the same command continues."
        if self.by_signal is None:
            error = TpawError(f"{who} failed with exit code {self.exit_code}; its output above says why. {kept}")
            error.exit_code = max(self.exit_code, 1)
            return error
        error = TpawError(
            f"{who} was ended by signal {self.by_signal}. Signal 9 without your doing is the system's want of memory. "
            f"{kept}"
        )
        error.exit_code = 128 + self.by_signal
        return error


def is_rank() -> bool:
    """Whether this process is one of those that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


@contextlib.contextmanager
def record_error() -> Iterator[None]:
    """In a training process: leave a user's error, or a stop, in the command's file, and pass it on."""
    try:
        yield
    except TpawError as error:
        _leave(error.problems, error.exit_code)
        raise
    except KeyboardInterrupt as stop:
        _leave([], TERMINATED if isinstance(stop, signals.Terminated) else INTERRUPTED)
        raise


@contextlib.contextmanager
def collect_error() -> Iterator[None]:
    """In the command: raise the error that a training process left instead of torchrun's failure."""
    before = os.environ.get(ERROR_FILE)
    with tempfile.TemporaryDirectory(prefix="llamafactory-tpaw-") as folder:
        path = Path(folder) / "error.json"
        os.environ[ERROR_FILE] = str(path)
        try:
            yield
        except CalledProcessError as failure:
            found = _collected(path)
            if found is None:
                raise
            raise found from failure
        finally:
            if before is None:
                del os.environ[ERROR_FILE]
            else:
                os.environ[ERROR_FILE] = before


def leave_failure(failure: Failure) -> None:
    """In torchrun: say to the command which rank failed."""
    path = os.environ.get(ERROR_FILE)
    if path and Path(path).parent.is_dir():
        Path(path + FAILURE_ENDING).write_text(json.dumps(asdict(failure)), encoding="utf-8")


@contextlib.contextmanager
def as_rank() -> Iterator[None]:
    r"""In a process that torchrun started: end as a command ends, with one message and no traceback.

    Where the command waits it tells the error itself, and this process ends with torchrun.

    Raises:
        SystemExit: Then.
    """
    signals.end_with_parent()
    _forget_earlier_attempts()
    try:
        with signals.raise_on_signals(), record_error():
            yield
    except KeyboardInterrupt as stop:
        silent = os.environ.get("RANK") != "0"
        raise SystemExit(signals.report(stop, silent)) from None
    except TpawError as error:
        if not signals.is_waited_for():
            for problem in error.problems:
                sys.stderr.write(f"llamafactory-tpaw: rank {os.environ.get('RANK')}: {problem}\n")
        raise SystemExit(error.exit_code) from None


@contextlib.contextmanager
def watched_torchrun(launcher: ModuleType) -> Iterator[None]:
    """Let LlamaFactory's launcher start `torchrun` as this package does."""
    launcher.subprocess = _Subprocess()
    try:
        yield
    finally:
        launcher.subprocess = subprocess


def decided_once(decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    r"""Have the first of the training processes decide, and all of them do what it decided.

    Args:
        decide: Returns what JSON can hold. Alone, the process decides for itself.

    Raises:
        TpawError: In every process, if deciding raised one.
        SystemExit: In the same way.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return decide()
    key = f"{DECISION}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if os.environ["RANK"] != "0":
        return _obey(json.loads(_store().get(key)))
    answer: dict[str, Any] = {"exit_code": 1, "problems": ["The first training process failed; it says why."]}
    try:
        decision = decide()
        answer = {"decision": decision}
        return decision
    except TpawError as error:
        answer = {"exit_code": error.exit_code, "problems": error.problems}
        raise
    except SystemExit as stop:
        answer = {"exit_code": stop.code, "problems": []}
        raise
    finally:
        _store().set(key, json.dumps(answer))


def _obey(answer: dict[str, Any]) -> dict[str, Any]:
    if "decision" in answer:
        return answer["decision"]
    if not answer["problems"]:
        raise SystemExit(answer["exit_code"])
    error = ConfigError(answer["problems"])
    error.exit_code = answer["exit_code"]
    raise error


@functools.cache
def _store() -> Any:
    """The store at which the processes meet; kept, since the first process may be its server."""
    from torch.distributed import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return store


class _Subprocess:
    """Python's `subprocess`, but for one command."""

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def run(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, check: bool = False, **named: Any
    ) -> Any:
        """Run `torchrun` so that signals and failures of its ranks are seen to; anything else as ever."""
        if command[0] != "torchrun":
            return subprocess.run(command, env=env, check=check, **named)
        words = [sys.executable, "-m", TORCHRUN, *command[1:]]
        code = signals.run_child(words, os.environ if env is None else env, signals.SAVING_S, **named)
        if code and check:
            raise CalledProcessError(code, command)
        return subprocess.CompletedProcess(command, code)


def _leave(problems: list[str], exit_code: int) -> None:
    """The first error counts: the others' may come of it."""
    path = os.environ.get(ERROR_FILE)
    if not path or not Path(path).parent.is_dir():
        return
    own = Path(f"{path}.{os.getpid()}")
    record = {"problems": problems, "exit_code": exit_code, "attempt": _attempt(), "rank": os.environ.get("RANK")}
    own.write_text(json.dumps(record), encoding="utf-8")
    with contextlib.suppress(FileExistsError):
        os.link(own, path)
    own.unlink()


def _collected(path: Path) -> BaseException | None:
    """What ended the ranks: a signal that killed one, an error, a stop, or what only its output tells."""
    left = Path(str(path) + FAILURE_ENDING)
    failure = Failure(**json.loads(left.read_text(encoding="utf-8"))) if left.is_file() else None
    if failure is not None and failure.by_signal is not None:
        return failure.explain()
    if path.is_file():
        return _stop_or_error(json.loads(path.read_text(encoding="utf-8")))
    return None if failure is None else failure.explain()


def _stop_or_error(record: dict[str, Any]) -> BaseException:
    if record["problems"]:
        error = ConfigError(record["problems"])
        error.exit_code = record["exit_code"]
        return error
    return signals.Terminated() if record["exit_code"] == TERMINATED else KeyboardInterrupt()


def _forget_earlier_attempts() -> None:
    """What ended the ranks that torchrun started before is mended by starting them again."""
    path = Path(os.environ.get(ERROR_FILE, ""))
    if not path.is_file():
        return
    if json.loads(path.read_text(encoding="utf-8"))["attempt"] < _attempt():
        path.unlink(missing_ok=True)


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
