# SPDX-License-Identifier: Apache-2.0
"""Which tests a worker of pytest-xdist gets: whole files, and all files that share an expensive run."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest


TESTS = Path(__file__).resolve().parent
# Session fixtures that run several commands: made once, where all that use one of them are on one worker.
SHARED_RUNS = ("played",)
# Folders whose files share a server, or launches of several processes.
SHARED_FOLDERS = ("board", "distributed")


def scheduler(config: pytest.Config, log: Any) -> Any:
    """Return what hands the groups out in the order of collection: runs of commands first, then many short tests."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return ByFile(config, log)


@functools.cache
def group_of(path: str) -> str:
    """Name the group of a test file, from what it and the conftest.py beside it mention."""
    file = TESTS.parent / path
    folder = file.relative_to(TESTS).parts[0]
    if folder in SHARED_FOLDERS:
        return folder
    beside = file.with_name("conftest.py")
    texts = [file, *([beside] if beside.is_file() and beside.parent != TESTS else [])]
    words = {word for text in texts for word in re.findall(r"\w+", text.read_text(encoding="utf-8"))}
    return next((name for name in SHARED_RUNS if name in words), path)
