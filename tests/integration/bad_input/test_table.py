# SPDX-License-Identifier: Apache-2.0
"""Every row of wrong input gets the exit code and the exact messages of `messages.md`, and leaves no trace."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from llamafactory_tpaw.arguments.checks import INCOMPATIBLE
from tests.runs import Project

from . import rows_checkpoints, rows_files, rows_keys, rows_prompts, rows_triplets
from .rows import Refusal, Row, read_messages
from .spoiling import anew, contents, other_weights, remove_triplets


pytestmark = pytest.mark.integration

MODULES = (rows_keys, rows_files, rows_checkpoints, rows_prompts, rows_triplets)
ROWS: list[Row] = [row for module in MODULES for row in module.ROWS]
MESSAGES = read_messages()
# Digests, whole or cut to 12 digits, and the ids of prompts.
DIGEST = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,64}(-\d+)?\b")
CACHE_SHARD = re.compile(r"logps/[0-9a-f]{2}/[0-9a-f]{64}")
RUN_FILE = "run.yaml"


def test_the_table_has_every_row_once() -> None:
    abouts = [row.about for row in ROWS]
    assert len(abouts) == len(set(abouts))
    assert list(MESSAGES) == abouts
    assert all(refusal.problems for refusal in MESSAGES.values())
    # LlamaFactory 0.9.5 does not know this one, and says so as well.
    assert set(rows_keys.INCOMPATIBLE) == set(INCOMPATIBLE) - {"use_megatron_bridge"}


def prepare(row: Row, project: Project) -> tuple[str, ...]:
    """Spoil the run, write its run file and return what stands after `train`."""
    if row.generating:
        remove_triplets(row.iteration)
    settings = anew(project, row.iteration, **row.given)
    if row.run_file is None:
        Path(RUN_FILE).write_text(yaml.safe_dump(settings))
    elif row.run_file:
        Path(RUN_FILE).write_bytes(row.run_file if isinstance(row.run_file, bytes) else row.run_file.encode())
    if row.spoil is not None:
        row.spoil()
    return (RUN_FILE, *row.overrides)


def plain(problem: str, row: Row, project: Project) -> str:
    """A message without what differs from one machine and moment to the next."""
    for pattern, placeholder in row.unlike:
        problem = re.sub(pattern, placeholder, problem)
    problem = CACHE_SHARD.sub("logps/<digest>", problem.replace(str(project.root), "<folder>"))
    return DIGEST.sub("<digest>", problem)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.about)
def test_refused(
    row: Row, project: Project, train_command: Callable[..., Refusal], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in row.environment.items():
        monkeypatch.setenv(name, value)
    arguments = prepare(row, project)
    with row.during():
        before = contents(project.root)
        code, problems = train_command(*arguments)
        after = contents(project.root)
    assert Refusal(code, [plain(problem, row, project) for problem in problems]) == MESSAGES[row.about]
    assert after == before, "something was written"
    assert os.getcwd() == str(project.root)


def test_the_real_command_where_its_child_refuses(project: Project) -> None:
    """The exit code, the message once, no traceback, no trace."""
    remove_triplets(1)
    other_weights("saves/play_iter0")
    before = contents(project.root)
    result = project.train(anew(project, 1), name=RUN_FILE)
    assert result.code == 3, result.output
    assert "Traceback" not in result.output
    (error,) = (line for line in result.output.splitlines() if line.startswith("llamafactory-tpaw: error: "))
    assert "its weights were changed after the iteration" in error
    after = contents(project.root)
    del after[RUN_FILE]
    assert after == before
