# SPDX-License-Identifier: Apache-2.0
"""How an error of a training process reaches the command that started torchrun: torchrun itself ends with 1."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import CalledProcessError

from ..errors import ConfigError, TpawError


# Set by the command for the processes that it starts: the file in which one of them writes its error.
ERROR_FILE = "LLAMAFACTORY_TPAW_ERROR_FILE"


@contextlib.contextmanager
def record_error() -> Iterator[None]:
    """In a training process: leave an error that a user can cause in the command's file, and pass it on."""
    try:
        yield
    except TpawError as error:
        path = os.environ.get(ERROR_FILE)
        if path and Path(path).parent.is_dir():
            own = f"{path}.{os.getpid()}"
            record = {"problems": error.problems, "exit_code": error.exit_code}
            Path(own).write_text(json.dumps(record), encoding="utf-8")
            os.replace(own, path)
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
            if not path.is_file():
                raise
            record = json.loads(path.read_text(encoding="utf-8"))
            error = ConfigError(record["problems"])
            error.exit_code = record["exit_code"]
            raise error from failure
        finally:
            if before is None:
                del os.environ[ERROR_FILE]
            else:
                os.environ[ERROR_FILE] = before
