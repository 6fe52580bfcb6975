# SPDX-License-Identifier: Apache-2.0
"""Some of the extreme numbers, always the same ones, and models of each dtype, sound and broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign import numbers
from tests.campaign.bad_input import attack
from tests.gate import values


def test_losses_are_those_of_float64() -> None:
    attack(numbers.batches(), numbers.check_losses, 100, None)


@pytest.mark.usefixtures("logs_as_before")
def test_models_of_any_dtype_are_trained_and_broken_ones_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values.unpack(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len({numbers.check_model(number, 0) for number in range(6)}) == 5
