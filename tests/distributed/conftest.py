# SPDX-License-Identifier: Apache-2.0
"""The single process that all launches are held against, and what the launches found."""

from __future__ import annotations

import shutil

import pytest

from tests.distributed.launches import settings_of
from tests.runs import Project, Result


FOUND = pytest.StashKey[dict[str, list[str]]]()


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, played: tuple[Project, list[Result]]) -> Project:
    """A copy of a run of three iterations; iteration 2 is trained again in it, with reference `alone`."""
    root = tmp_path_factory.mktemp("distributed")
    shutil.copytree(played[0].root, root, dirs_exist_ok=True)
    project = Project(root, played[0].model)
    result = project.train(settings_of(project, "alone"), name="alone.yaml")
    assert result.code == 0, result.output
    return project


@pytest.fixture(scope="session")
def found(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """Lines for the summary by kind of training."""
    return request.config.stash.setdefault(FOUND, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how far each launch was from the single process."""
    for kind, lines in config.stash.get(FOUND, {}).items():
        terminalreporter.write_line(f"{kind}: {len(lines)} launches")
        for line in lines:
            terminalreporter.write_line(f"  {line}")
