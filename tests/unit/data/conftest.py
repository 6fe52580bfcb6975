# SPDX-License-Identifier: Apache-2.0
"""A folder with datasets, and an encoder of template `qwen`."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory_tpaw.arguments.parsed import RunArguments
from llamafactory_tpaw.data.encoding import TurnEncoder
from tests import encoders
from tests.runs import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, tmp_path / "theta_0")


@pytest.fixture
def run(project: Project) -> RunArguments:
    return encoders.parse(project)


@pytest.fixture
def encoder(run: RunArguments) -> TurnEncoder:
    return encoders.build_encoder(run)
