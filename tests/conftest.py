# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests: tiny models and tokenizers built on the spot, no hub."""

from __future__ import annotations

import os


os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["DISABLE_VERSION_CHECK"] = "1"

from pathlib import Path

import pytest

from tests import tiny


GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"


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
