# SPDX-License-Identifier: Apache-2.0
"""Command lines and bodies that are meant for vLLM, held to the installed package's own parser and model.

Opt-in, since vLLM is large: `TPAW_TEST_VLLM=1` makes an environment and installs vLLM (`TPAW_VLLM_VERSION` names
another than the newest); `TPAW_VLLM_PYTHON=/path/to/python` takes an environment that has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llamafactory_tpaw.generation.base import Request, SamplingSettings
from llamafactory_tpaw.generation.protocol import VLLM, Bodies
from llamafactory_tpaw.generation.vllm import Adapter, serve_arguments


pytestmark = pytest.mark.integration

PROBE = Path(__file__).with_name("vllm_probe.py")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that can import vLLM."""
    given = os.environ.get("TPAW_VLLM_PYTHON")
    if given:
        return given
    if os.environ.get("TPAW_TEST_VLLM") != "1":
        pytest.skip("set TPAW_TEST_VLLM=1 (installs vLLM, several GB), or TPAW_VLLM_PYTHON=/path/to/python with vLLM")
    folder = tmp_path_factory.mktemp("vllm") / "env"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    made = str(folder / "bin" / "python")
    version = os.environ.get("TPAW_VLLM_VERSION")
    subprocess.run([made, "-m", "pip", "install", f"vllm=={version}" if version else "vllm"], check=True)
    return made


@pytest.fixture(scope="module")
def answer(python: str) -> dict[str, Any]:
    """What vLLM makes of a line of each kind and of a body of each kind."""
    lines = [
        serve_arguments(
            context("theta_2", "saves/iter1", True),
            None,
            4711,
            ["--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.8"],
        ),
        serve_arguments(
            context("theta_1", "base", False), Adapter(Path("saves/lora"), 24), 4712, ["--data-parallel-size", "4"]
        ),
    ]
    asked = {"lines": lines, "bodies": [body(0.0), body(0.7)]}
    done = subprocess.run(
        [python, str(PROBE)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=os.environ | {"LLAMAFACTORY_TPAW": "0", "VLLM_NO_USAGE_STATS": "1"},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def context(name: str, model: str, trust: bool) -> Any:
    """What a command line is made from."""
    run = SimpleNamespace(data=SimpleNamespace(cutoff_len=2048), model=SimpleNamespace(trust_remote_code=trust))
    settings = SimpleNamespace(seed=42)
    return SimpleNamespace(name=name, model=model, dtype="bfloat16", run=run, settings=settings)


def body(temperature: float) -> dict[str, Any]:
    """The body of a request, as the engine sends it."""
    settings = SamplingSettings(temperature, 0.9, 40, 1.1, 32, 7)
    request = Request("a" * 16, np.asarray([1, 2, 3], dtype=np.int32), 32, 1)
    return Bodies(VLLM, "theta_2", settings, (0, 2), ("<|im_end|>",)).completion(request, [1, 2, 3])


def test_every_argument_is_known_and_read_as_meant(answer: dict[str, Any]) -> None:
    plain, adapted = answer["lines"]
    assert (plain["unknown"], adapted["unknown"]) == ([], [])
    expected = {
        "model_tag": "saves/iter1",
        "served_model_name": ["theta_2"],
        "host": "127.0.0.1",
        "port": 4711,
        "dtype": "bfloat16",
        "max_model_len": 2048,
        "generation_config": "vllm",
        "enable_prefix_caching": True,
        "uvicorn_log_level": "warning",
        "trust_remote_code": True,
        "tensor_parallel_size": 2,
        "seed": 42,
        "gpu_memory_utilization": 0.8,
    }
    assert {name: plain[name] for name in expected} == {name: repr(value) for name, value in expected.items()}
    expected = {"model_tag": "base", "enable_lora": True, "max_lora_rank": 32, "data_parallel_size": 4}
    assert {name: adapted[name] for name in expected} == {name: repr(value) for name, value in expected.items()}
    assert "name='theta_1', path='saves/lora'" in adapted["lora_modules"]


def test_every_field_of_a_body_is_known_and_read_as_meant(answer: dict[str, Any]) -> None:
    for sent, read in zip([body(0.0), body(0.7)], answer["bodies"], strict=True):
        assert read.pop("extra") == []
        assert read == sent
