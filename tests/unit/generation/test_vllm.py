# SPDX-License-Identifier: Apache-2.0
"""The command line and the environment that vLLM's server is given."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llamafactory_tpaw.errors import ConfigError, EnvironmentProblem
from llamafactory_tpaw.generation import vllm
from llamafactory_tpaw.generation.vllm import Adapter, ServedModel


SERVED = ServedModel("theta_2", "saves/iter1", None, "bfloat16", 2048, 42)


def adapter(folder: Path, **config: object) -> Path:
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 8, "bias": "none", "base_model_name_or_path": "base"} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_the_command_line() -> None:
    line = vllm.serve_arguments(SERVED, 4711, 2, ["--gpu-memory-utilization", "0.8"])
    assert " ".join(line) == (
        "serve saves/iter1 --served-model-name theta_2 --host 127.0.0.1 --port 4711 --dtype bfloat16 "
        "--max-model-len 2048 --generation-config vllm --enable-prefix-caching --uvicorn-log-level warning "
        "--tensor-parallel-size 2 --seed 42 --gpu-memory-utilization 0.8"
    )
    line = vllm.serve_arguments(ServedModel("t", "m", None, "float32", 9, 0, True), 1, None, [])
    assert "--trust-remote-code" in line
    assert "--tensor-parallel-size" not in line


def test_an_adapter_is_served_on_its_base(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora", r=24, rank_pattern={"q": 40})
    found = vllm.served_adapter([folder])
    assert found == Adapter(folder, 40)
    line = " ".join(vllm.serve_arguments(ServedModel("theta_1", "some/base", found, "float16", 64, 0), 1, 1, []))
    assert "serve some/base --served-model-name theta_1-base " in line
    assert f"--enable-lora --lora-modules theta_1={folder} --max-lora-rank 64 " in line
    assert vllm.served_adapter([]) is None


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "is a DoRA adapter"),
        ({"bias": "all"}, "trains biases"),
        ({"modules_to_save": ["lm_head"]}, r"trains whole modules, \['lm_head'\]"),
        ({"peft_type": "OFT"}, "is an adapter of kind OFT"),
        ({"r": 600}, "has rank 600, above 512"),
    ],
)
def test_adapters_that_vllm_does_not_serve(tmp_path: Path, config: dict, says: str) -> None:
    folder = adapter(tmp_path / "lora", **config)
    with pytest.raises(ConfigError, match=says):
        vllm.served_adapter([folder])


def test_several_adapters_cannot_be_served() -> None:
    with pytest.raises(ConfigError, match="has 2 adapters"):
        vllm.served_adapter([Path("one"), Path("two")])


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
    program = tmp_path / "my vllm"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(EnvironmentProblem, match=r"`tpaw_vllm_command: '.*my vllm'` begins with .*no program here"):
        vllm.find_program(f"'{program}'")
    program.chmod(0o755)
    assert vllm.find_program(f"'{program}' --flag") == [str(program), "--flag"]
    monkeypatch.chdir(tmp_path)
    assert vllm.find_program("./my\\ vllm") == [str(program)], "the servers may have another working folder"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert vllm.find_program("'~/my vllm'") == [str(program)]
    assert vllm.find_program("{python} -m vllm.entrypoints.cli.main")[0] == os.path.abspath(sys.executable)
    with pytest.raises(ConfigError, match="`tpaw_vllm_command: 'a` cannot be split into words: No closing quotation"):
        vllm.find_program("'a")


def test_without_vllm_the_message_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="`tpaw_vllm_command: vllm-env/bin/vllm`"):
        vllm.find_program(None)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "vllm").chmod(0o755)
    assert vllm.find_program(None) == [str(tmp_path / "bin" / "vllm")], "beside this interpreter, on no PATH"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("--dtype float16", "`bf16`"),
        ("--max_model_len=8", "`cutoff_len`"),
        ("--max-model 8", "`cutoff_len`"),
        ("--no-enable-prefix-caching", "it is on"),
        ("--api-key x", "each run makes a key"),
        ("--port 1", "a free one is taken"),
        ("--generation-config auto", "`temperature`"),
    ],
)
def test_what_we_set_cannot_be_set_again(text: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        vllm.split_arguments(text)


def test_other_arguments_pass() -> None:
    text = "--max-num-seqs 64 --quantization=fp8 -tp 2 --tokenizer-mode slow --model-impl vllm --speculative-config "
    text += "'{\"a\": 1}'"
    assert vllm.split_arguments(text)[-1] == '{"a": 1}'
    assert vllm.split_arguments(None) == []


def test_what_llamafactory_does_to_a_model_is_refused() -> None:
    plain = SimpleNamespace(rope_scaling=None, quantization_bit=None, shift_attn=False)
    vllm.refuse_unsupported(plain)
    changed = SimpleNamespace(rope_scaling=SimpleNamespace(value="yarn"), quantization_bit=4, shift_attn=False)
    with pytest.raises(ConfigError, match="`rope_scaling: yarn`, `quantization_bit: 4` changes the model"):
        vllm.refuse_unsupported(changed)
