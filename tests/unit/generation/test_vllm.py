# SPDX-License-Identifier: Apache-2.0
"""The command line and the environment that vLLM's server is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError, EnvironmentProblem
from llamafactory_tpaw.generation import vllm


def line(*extra: str, **changes: Any) -> str:
    """The command line of a server."""
    run = SimpleNamespace(data=SimpleNamespace(cutoff_len=2048), model=SimpleNamespace(trust_remote_code=bool(extra)))
    plain = {"name": "theta_2", "model": "saves/iter1", "dtype": "bfloat16", "adapters": ()}
    plain |= {"settings": SimpleNamespace(seed=42), "run": run}
    return " ".join(vllm.serve_arguments(SimpleNamespace(**(plain | changes)), 4711, extra))


def adapter(folder: Path, **config: object) -> Path:
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 8, "bias": "none", "base_model_name_or_path": "base"} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_the_command_line() -> None:
    plain = (
        "serve saves/iter1 --served-model-name theta_2 --host 127.0.0.1 --port 4711 --dtype bfloat16 "
        "--max-model-len 2048 --generation-config vllm --enable-prefix-caching --uvicorn-log-level warning"
    )
    assert line() == f"{plain} --seed 42"
    assert line("-tp", "2") == f"{plain} --trust-remote-code --seed 42 -tp 2"


@pytest.mark.parametrize(
    ("billions", "dtype", "gpus", "arguments"),
    [
        (8, "bfloat16", 1, ""),
        (8, "bfloat16", 3, "--data-parallel-size 3"),
        (8, "float32", 2, "--tensor-parallel-size 2"),
        (8, "float32", 5, "--tensor-parallel-size 2 --data-parallel-size 2"),
        (1000, "bfloat16", 8, "--tensor-parallel-size 4 --data-parallel-size 2"),  # what divides the heads
    ],
)
def test_as_many_copies_as_the_gpus_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, billions: int, dtype: str, gpus: int, arguments: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 12}))
    monkeypatch.setattr(vllm, "read_tensors", lambda folder: [SimpleNamespace(shape=(billions, 10**9))])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    memory = SimpleNamespace(total_memory=24 * 10**9)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: memory)
    assert vllm.parallel_arguments(tmp_path, dtype, gpus) == arguments.split()


def test_what_the_user_says_of_gpus_counts() -> None:
    assert all(map(vllm.PARALLEL.match, ["-tp", "--tensor-parallel-size=2", "--pipeline_parallel_size"]))
    assert not any(map(vllm.PARALLEL.match, ["-tps", "--context-parallel-size"]))


def test_an_adapter_is_served_on_its_base(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora", r=24, rank_pattern={"q": 40})
    said = line(model="some/base", adapters=(folder,))
    assert "serve some/base --served-model-name theta_2-base " in said
    assert f"--enable-lora --lora-modules theta_2={folder} --max-lora-rank 64 " in said
    with pytest.raises(ConfigError, match="has 2 adapters"):
        vllm.served_rank([folder, folder])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True, "bias": "all"}, "use_dora: True, bias: all"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: \['lm_head'\]"),
        ({"peft_type": "OFT"}, "peft_type: OFT"),
        ({"r": 600}, "rank 600"),
    ],
)
def test_adapters_that_vllm_does_not_serve(tmp_path: Path, config: dict, says: str) -> None:
    folder = adapter(tmp_path / "lora", **config)
    with pytest.raises(ConfigError, match=f"lora has {says}, but vLLM serves plain LoRA adapters up to rank 512"):
        vllm.served_rank([folder])


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    inherited = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "0,1", "RANK": "0", "LLAMAFACTORY_TPAW_PARENT": "7"}
    assert vllm.server_environment(inherited, ["GPU-abc"], "key") == {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "GPU-abc",
        "LLAMAFACTORY_TPAW": "0",
        "VLLM_API_KEY": "key",
        "VLLM_NO_USAGE_STATS": "1",
    }
    assert vllm.server_environment({"CUDA_VISIBLE_DEVICES": ""}, [], "key")["CUDA_VISIBLE_DEVICES"] == ""
    amd = vllm.server_environment({"HIP_VISIBLE_DEVICES": "2,3"}, ["3"], "key")
    assert (amd["HIP_VISIBLE_DEVICES"], "CUDA_VISIBLE_DEVICES" in amd) == ("3", False)


def test_which_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "my vllm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    with pytest.raises(EnvironmentProblem, match=r"needs the program `.*my vllm`.*`tpaw_vllm_command: vllm-env/bin/"):
        vllm.find_program(f"'{program}'")
    program.chmod(0o755)
    assert vllm.find_program(f"'{program}' --flag") == [str(program), "--flag"]
    monkeypatch.chdir(tmp_path)
    assert vllm.find_program("bin/my\\ vllm") == [str(program)], "the servers may have another working folder"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert vllm.find_program("'~/bin/my vllm'") == [str(program)]
    with pytest.raises(ConfigError, match="`tpaw_vllm_command: 'a` is no command: No closing quotation"):
        vllm.find_program("'a")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="needs the program `vllm`"):
        vllm.find_program(None)
    program.rename(tmp_path / "bin" / "vllm")
    assert vllm.find_program(None) == [str(tmp_path / "bin" / "vllm")], "beside this interpreter, on no PATH"
