# SPDX-License-Identifier: Apache-2.0
"""The single process that all launches are held against."""

from __future__ import annotations

import shutil

import pytest

from tests.distributed.launches import settings_of
from tests.runs import Project, Result


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, played: tuple[Project, list[Result]]) -> Project:
    """A copy of a run of three iterations; iteration 2 is trained again in it, with reference `alone`."""
    root = tmp_path_factory.mktemp("distributed")
    shutil.copytree(played[0].root, root, dirs_exist_ok=True)
    project = Project(root, played[0].model)
    result = project.train(settings_of(project, "alone"), name="alone.yaml")
    assert result.code == 0, result.output
    return project


@pytest.fixture
def every_parallelism(request: pytest.FixtureRequest) -> None:
    """Skip what is launched only where it is asked for."""
    if not request.config.getoption("every_parallelism"):
        pytest.skip("with --every-parallelism")
