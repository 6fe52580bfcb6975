# SPDX-License-Identifier: Apache-2.0
"""What libraries print does not stand between a command's lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import datasets
import pytest
import transformers

from llamafactory_tpaw.cli.libraries import be_quiet


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logs, verbosity = logging.getLogger("llamafactory"), transformers.utils.logging.get_verbosity()
    level = logs.level
    yield
    logs.setLevel(level)
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()


def test_neither_warnings_nor_bars(capsys: pytest.CaptureFixture[str]) -> None:
    be_quiet()
    logging.getLogger("llamafactory.data").warning("a warning")
    assert not transformers.utils.logging.is_progress_bar_enabled()
    datasets.Dataset.from_dict({"a": [1, 2]}).map(lambda row: row)
    assert "".join(capsys.readouterr()) == ""
    logging.getLogger("llamafactory.data").error("an error")
    assert logging.getLogger("llamafactory.data").getEffectiveLevel() == logging.ERROR
