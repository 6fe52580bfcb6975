# SPDX-License-Identifier: Apache-2.0
"""A run file is read once in a command, whatever processes the command starts."""

from __future__ import annotations

import pytest

from tests.runs import Project, Result


@pytest.mark.integration
def test_a_run_file_is_read_once(played: tuple[Project, list[Result]]) -> None:
    """Each command generated in a child process and trained; all of them note what they open."""
    project, results = played
    assert all("generated first, in a separate process" in result.output for result in results)
    assert (project.root / "reads.txt").read_text().split() == ["iter0.yaml", "iter1.yaml", "iter2.yaml"]
