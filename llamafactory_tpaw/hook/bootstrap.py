# SPDX-License-Identifier: Apache-2.0
"""`llamafactory-tpaw train`: the hook where no `.pth` file is processed, here and in every child process."""

import os
import sys
from pathlib import Path

from .. import _hook
from ..errors import ConfigError
from ..lf.status import PACKAGE
from . import start


STARTUP_FOLDER = Path(__file__).resolve().parents[1] / "_bootstrap"


def activate() -> None:
    """Register the hook in this process and, by PYTHONPATH, in those that it will start, or raise why it cannot be."""
    start.install()
    reason = _hook.inactive_reason()
    if reason:
        raise ConfigError(reason)
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if str(STARTUP_FOLDER) not in folders:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(STARTUP_FOLDER), *folders])
    if sys.stderr.isatty() and PACKAGE not in sys.modules:
        sys.stderr.write("llamafactory-tpaw: loading LlamaFactory ...\n")  # silent for ten seconds and more


def train(arguments: list[str]) -> None:
    """Do what `llamafactory-cli train` does with these arguments."""
    activate()
    sys.argv = ["llamafactory-cli", "train", *arguments]
    from llamafactory.cli import main

    main()
