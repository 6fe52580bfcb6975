# SPDX-License-Identifier: Apache-2.0
"""How what ends a training process reaches the command that waits for it: torchrun ends with 1, whatever happened."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import TERMINATED, TpawError
from ..lf import signals


ERROR_FILE = "error.json"


def is_rank() -> bool:
    """Whether this process is one of those that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


@contextlib.contextmanager
def as_rank(handed: Mapping[str, Any] | None) -> Iterator[None]:
    r"""In a process that torchrun started: end as a command ends, with one message and no traceback.

    The command that handed something over tells the message itself.
    """
    signals.end_with_parent()
    if handed and os.environ["RANK"] == "0":
        Path(handed["folder"], ERROR_FILE).unlink(missing_ok=True)  # of an attempt before torchrun's restart
    try:
        with signals.raise_on_signals(), recorded(handed):
            yield
    except (TpawError, KeyboardInterrupt) as error:
        silent = handed or (isinstance(error, KeyboardInterrupt) and os.environ["RANK"] != "0")
        raise SystemExit(signals.code_of(error) if silent else signals.report(error)) from None


@contextlib.contextmanager
def recorded(handed: Mapping[str, Any] | None) -> Iterator[None]:
    """In a training process: leave a user's error, or a stop, where the command finds it, and pass it on."""
    try:
        yield
    except (TpawError, KeyboardInterrupt) as error:
        path = Path(handed["folder"] if handed else "", ERROR_FILE)
        if handed and path.parent.is_dir():
            record = {"problems": getattr(error, "problems", []), "exit_code": signals.code_of(error)}
            own = path.with_name(f"{ERROR_FILE}.{os.getpid()}")
            own.write_text(json.dumps(record), encoding="utf-8")
            with contextlib.suppress(FileExistsError):
                os.link(own, path)  # the first error counts: the others' may come of it
            own.unlink()
        raise


@contextlib.contextmanager
def awaited(launcher: ModuleType, plan_file: str) -> Iterator[None]:
    r"""In the command: let torchrun's processes save before they end, and raise what one of them left."""
    launcher.subprocess = _Subprocess()
    try:
        yield
    except Exception as failure:
        path = Path(plan_file).with_name(ERROR_FILE)
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            if not record["problems"]:
                raise signals.Terminated if record["exit_code"] == TERMINATED else KeyboardInterrupt from None
            error = TpawError(record["problems"])
            error.exit_code = record["exit_code"]
            raise error from failure
        if isinstance(failure, subprocess.CalledProcessError):
            raise TpawError(
                f"torchrun ended with exit code {failure.returncode}; its output above says which rank failed first "
                "and how. What is done is kept: the same command continues."
            ) from failure
        raise
    finally:
        launcher.subprocess = subprocess


class _Subprocess:
    """Python's `subprocess`, but for one command."""

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def run(self, command: Sequence[str], env: Mapping[str, str] | None = None, check: bool = False) -> Any:
        """Run `torchrun` in this interpreter's environment, so that its ranks are asked to end before it is."""
        environment = dict(os.environ if env is None else env)
        if environment.get("MAX_RESTARTS", "0") != "0":
            # Ranks that are started again would meet in the store of the first ones, and read where those were.
            environment.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        words = [sys.executable, "-m", "torch.distributed.run", *command[1:]]
        code = signals.run_child(words, env=environment, patience_s=signals.SAVING_S, through=True)
        if code and check:
            raise subprocess.CalledProcessError(code, command)
        return subprocess.CompletedProcess(command, code)
