# SPDX-License-Identifier: Apache-2.0
"""An error in a training process that torchrun started becomes the command's error."""

from __future__ import annotations

import os
from subprocess import CalledProcessError

import pytest

from llamafactory_tpaw.errors import ConfigError, GenerationError, TpawError
from llamafactory_tpaw.plugin.ranks import ERROR_FILE, collect_error, record_error


@pytest.fixture(autouse=True)
def _no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ERROR_FILE, raising=False)


def fail_in_rank(error: Exception) -> None:
    """Do what a rank does, and then what LlamaFactory's launcher does when torchrun failed."""
    with pytest.raises(type(error)), record_error():
        raise error
    raise CalledProcessError(1, ["torchrun"])


def test_error_of_a_rank_replaces_torchruns() -> None:
    with pytest.raises(TpawError) as caught, collect_error():
        fail_in_rank(ConfigError(["one.", "two."]))
    assert (caught.value.problems, caught.value.exit_code) == (["one.", "two."], ConfigError.exit_code)
    with pytest.raises(TpawError, match="the engine is gone") as caught, collect_error():
        fail_in_rank(GenerationError("the engine is gone."))
    assert caught.value.exit_code == GenerationError.exit_code
    assert ERROR_FILE not in os.environ


def test_other_failures_stay_torchruns() -> None:
    with pytest.raises(CalledProcessError), collect_error():
        fail_in_rank(RuntimeError("out of memory"))


def test_without_the_command_the_error_just_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ERROR_FILE, "/no/such/folder/error.json")
    with pytest.raises(GenerationError), record_error():
        raise GenerationError("the engine is gone.")
