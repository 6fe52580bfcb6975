# SPDX-License-Identifier: Apache-2.0
"""A few of the made-up inputs, always the same ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign import bad_input


@pytest.mark.usefixtures("logs_as_before")
def test_made_up_inputs_are_taken_or_refused_in_plain_words(tmp_path: Path) -> None:
    outcome = bad_input.run(300, None, tmp_path)
    assert not outcome.failures
    assert sum(outcome.tried.values()) > 200
