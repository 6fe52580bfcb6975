# SPDX-License-Identifier: Apache-2.0
"""Command lines and bodies that are meant for vLLM, held to the installed package's own parser and model.

Opt-in, since vLLM is large: `TPAW_VLLM_PYTHON=/path/to/python` names an interpreter that has it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llamafactory_tpaw.generation.base import Request, SamplingSettings
from llamafactory_tpaw.generation.protocol import IDS, VLLM, Dialect
from llamafactory_tpaw.generation.vllm import serve_arguments


pytestmark = pytest.mark.integration


def line(name: str, extra: list[str], *adapters: Path) -> list[str]:
    run = SimpleNamespace(data=SimpleNamespace(cutoff_len=2048), model=SimpleNamespace(trust_remote_code=True))
    rest = {"run": run, "settings": SimpleNamespace(seed=42), "dtype": "bfloat16"}
    return serve_arguments(SimpleNamespace(name=name, model="saves/iter1", adapters=adapters, **rest), 4711, extra)


def body(temperature: float) -> dict[str, Any]:
    """The body of a request, as the engine sends it."""
    settings = SamplingSettings(temperature, 0.9, 40, 1.1, 32, 7)
    request = Request("a" * 16, np.asarray([1, 2, 3], dtype=np.int32), 32, 1)
    return Dialect(VLLM, "theta_2", settings, None, (0, 2), IDS).body(request, [1, 2, 3])


def test_everything_is_known_and_read_as_meant(tmp_path: Path) -> None:
    python = os.environ.get("TPAW_VLLM_PYTHON")
    if not python:
        pytest.skip("set TPAW_VLLM_PYTHON=/path/to/python with vLLM")
    (tmp_path / "adapter_config.json").write_text('{"r": 24}')
    lines = [
        line("theta_2", ["--tensor-parallel-size", "2"]),
        line("theta_1", ["--data-parallel-size", "4"], tmp_path),
    ]
    bodies = [body(0.0), body(0.7)]
    done = subprocess.run(
        [python, str(Path(__file__).with_name("vllm_probe.py"))],
        input=json.dumps({"lines": lines, "bodies": bodies}),
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"LLAMAFACTORY_TPAW": "0", "VLLM_NO_USAGE_STATS": "1"},
        timeout=600,
        check=True,
    )
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["bodies"] == [sent | {"extra": []} for sent in bodies]
    plain, adapted = read["lines"]
    meant = {"model_tag": "saves/iter1", "served_model_name": ["theta_2"], "host": "127.0.0.1", "port": 4711}
    meant |= {"dtype": "bfloat16", "max_model_len": 2048, "generation_config": "vllm", "seed": 42}
    meant |= {"enable_prefix_caching": True, "trust_remote_code": True, "tensor_parallel_size": 2}
    assert {name: repr(value) for name, value in meant.items()}.items() <= plain.items()
    meant = {"enable_lora": True, "max_lora_rank": 32, "data_parallel_size": 4}
    assert {name: repr(value) for name, value in meant.items()}.items() <= adapted.items()
    assert f"name='theta_1', path='{tmp_path}'" in adapted["lora_modules"]
    assert plain["unknown"] == adapted["unknown"] == []
