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
# The folder whose files share a server.
SHARED_FOLDER = "board"


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
    if file.is_relative_to(TESTS / SHARED_FOLDER):
        return SHARED_FOLDER
    beside = file.with_name("conftest.py")
    texts = [file, *([beside] if beside.is_file() and beside.parent != TESTS else [])]
    words = {word for text in texts for word in re.findall(r"\w+", text.read_text(encoding="utf-8"))}
    return next((name for name in SHARED_RUNS if name in words), path)
