# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests: tiny models and tokenizers built on the spot, no hub."""

from __future__ import annotations

import logging
import os
import signal
import tempfile


os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Where `datasets` keeps the rows that it reads, which would fill the user's folder.
os.environ.setdefault("HF_DATASETS_CACHE", os.path.join(tempfile.gettempdir(), f"tpaw-tests-{os.getuid()}"))
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import runs, tiny


# A shell's `&` and `nohup` have Ctrl-C ignored, also by the commands that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for what takes long."""
    parser.addoption(
        "--every-parallelism", action="store_true", help="in tests/distributed also ZeRO-1, ZeRO-2, offload, Ray"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let a worker of pytest-xdist take whole files, and all files together that share the run `played`."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            texts = [path.read_text("utf-8") for path in (file, file.with_name("conftest.py")) if path.is_file()]
            return "played" if any("played: tuple[" in text for text in texts) else str(file)

    config.option.loadscopereorder = False  # runs of commands first, then many short tests
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _no_command_leaves_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that runs in the test's process puts the hook's folder into PYTHONPATH, and may change its folder."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.chdir(Path.cwd())


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder, as the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """Commands in this process settle for all that comes after what is logged."""
    import datasets
    import transformers

    level = logging.getLogger("llamafactory").level
    yield
    logging.getLogger("llamafactory").setLevel(level)
    transformers.utils.logging.set_verbosity_warning()
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """Folder of the GSM8K problems; the tests that need it are skipped where it is absent."""
    if not GSM8K.is_dir():
        pytest.skip(f"the GSM8K problems are not at {GSM8K}")
    return GSM8K


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-architecture checkpoint in float32 whose tokenizer holds the tokens of `qwen`, `llama3`, `qwen3`."""
    return tiny.save_model(tmp_path_factory.mktemp("tiny") / "theta_0")


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[runs.Project, list[runs.Result]]:
    """A run of iterations 0, 1, 2, each by one `llamafactory-cli train`, and what each printed. Do not change it."""
    project = runs.Project(tmp_path_factory.mktemp("played"), tiny_model)
    results = []
    for iteration in range(3):
        settings = project.settings(iteration, plot_loss=True, num_train_epochs=2.0)
        results.append(project.train(settings, name=f"iter{iteration}.yaml"))
    for result in results:
        assert result.code == 0, result.output
    return project, results
