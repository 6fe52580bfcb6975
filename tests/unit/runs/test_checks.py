# SPDX-License-Identifier: Apache-2.0
"""What is checked beyond settings: engines and their servers, and the token round trip."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers as hf

from llamafactory_tpaw.arguments.checks import read_tpaw_args
from llamafactory_tpaw.data.prompts import Prompt
from llamafactory_tpaw.errors import ConfigError, EnvironmentProblem, Findings, GenerationError
from llamafactory_tpaw.lf import facade
from llamafactory_tpaw.runs import checks, launcher
from llamafactory_tpaw.runs.check import check
from llamafactory_tpaw.runs.checks import check_engine, refuse_engine, round_trip_problems
from llamafactory_tpaw.team import shortcuts
from tests import encoders
from tests.runs import Project
from tests.servers.faulty import ScriptedServer


def engine(given: dict[str, Any], to_generate: int = 1) -> Findings:
    findings = Findings()
    given = {"model_name_or_path": "saves/theta_1"} | given
    plan: Any = SimpleNamespace(given=given, to_generate=[None] * to_generate, tpaw_args=read_tpaw_args(given)[0])
    with findings.note():
        check_engine(plan, findings)
    return findings


def lists(name: str) -> Any:
    return lambda method, path, body: (200, {"data": [{"id": name}]}) if path == "/v1/models" else (404, "")


def test_servers_are_named_with_what_they_serve() -> None:
    with ScriptedServer(lists("theta_1")) as right, ScriptedServer(lists("theta_0")) as wrong:
        given = {"tpaw_engine": "openai", "tpaw_engine_url": f"{right.url},{wrong.url}"}
        found = engine(given)
        assert engine(given, to_generate=0).remarks == []
        assert engine(given | {"tpaw_opponent_model": "theta_0"}).remarks[0].startswith(wrong.url)
    (first,), ((second, code),) = found.remarks, found.problems.items()
    assert code == GenerationError.exit_code
    assert first == f"{right.url} answers: a server of OpenAI's API, serving theta_1."
    assert second.startswith(f"The server at {wrong.url} serves theta_0, but saves/theta_1 or theta_1 is asked for.")


def test_vllm_is_looked_for(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (remark,) = engine({"tpaw_engine": "vllm", "tpaw_vllm_command": str(program)}).remarks
    assert remark == f"`tpaw_engine: vllm` starts {program} serve."
    found = engine({"tpaw_engine": "vllm", "tpaw_vllm_command": str(tmp_path / "none")})
    assert found.exit_code == EnvironmentProblem.exit_code


@pytest.mark.parametrize("name", ["openai", "vllm"])
def test_a_package_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    ((message, code),) = engine({"tpaw_engine": name, "tpaw_engine_url": "http://localhost:1/v1"}).problems.items()
    assert code == EnvironmentProblem.exit_code
    assert 'Run: pip install "llamafactory-tpaw[openai]"' in message


def test_a_proxy_that_no_server_is_asked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:7891/")
    found = engine({"tpaw_engine": "openai", "tpaw_engine_url": "http://node1:8000/v1"})
    assert found.exit_code == ConfigError.exit_code
    assert "`ALL_PROXY`" in str(found.problems)


def test_deepspeed_and_fsdp_that_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("FORCE_TORCHRUN", raising=False)
    given = {"deepspeed": {"zero_optimization": {"stage": 3}}, "fsdp": "full_shard", "use_cpu": True, "do_train": True}
    with pytest.raises(ConfigError) as caught:
        refuse_engine(given)
    assert len(caught.value.problems) == 4, "all at once; tests/integration/bad_input has each"
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="DeepSpeed is not installed"):
        refuse_engine(given)
    with pytest.raises(EnvironmentProblem, match=r"`tpaw_eval_tasks` is set, but lm-eval is not installed"):
        refuse_engine({"tpaw_eval_tasks": "gsm8k"})


# -- the token round trip


MESSAGES = [{"role": "user", "content": " How many?\n"}]


OPENAI = {"tpaw_engine": "openai", "tpaw_engine_url": "http://localhost:1/v1"}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 8, "vocab_size": 1000}


@pytest.mark.parametrize("keys", [{"tpaw_engine": "vllm"}, OPENAI, {"tpaw_opponent_model": "saves/weak"}], ids=str)
def test_attention_that_is_not_causal_is_refused_before_sampling(
    tiny_model: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]
) -> None:
    project = Project(elsewhere, shutil.copytree(tiny_model, elsewhere / "saves" / "theta_0"))
    shutil.copytree(tiny_model, elsewhere / "saves" / "weak")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    given = project.settings(0, **keys)
    hf.Gemma3TextConfig(**SIZES, use_bidirectional_attention=True).save_pretrained(project.model)
    refused = rf"Gemma3ForCausalLM \({project.model}\) lets tokens see those that come after them, so players"
    with pytest.raises(ConfigError, match=refused):
        launcher.generate([project.write("run.yaml", given)])
    assert any(re.match(refused, found["message"]) for found in check(given)["findings"])
    assert not list(elsewhere.glob("data/tpaw/*"))


def test_a_small_model_that_is_too_large_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    config = hf.Gemma3TextConfig(**SIZES | {"intermediate_size": 2**40})
    monkeypatch.setattr(facade, "load_config", lambda model_args: config)
    shortcuts.check_causal(SimpleNamespace(trust_remote_code=False), findings := Findings())
    assert "no small one of its kind could be: 2 of its layers take " in findings.remarks[0]


def test_each_break_is_named_once_with_the_first_prompt(tiny_model: Path, tmp_path: Path) -> None:
    encoder = encoders.build_encoder(encoders.parse(Project(tmp_path, tiny_model)))
    target = {"role": "assistant", "content": " 7 apples. \n"}
    good = Prompt("abc-0", MESSAGES, "", "", target, *encoder.encode(MESSAGES, target, "", ""))
    assert round_trip_problems([good], encoder, "qwen") == []
    other = replace(good, prompt_ids=good.prompt_ids[1:])
    (problem,) = round_trip_problems([good, other, other], encoder, "qwen")
    assert problem.startswith(
        "`template: qwen`: prompt 2 (abc-0) is written to a triplet file and read back as other tokens"
    )
    encoder.finish = lambda ids, reason: np.asarray(ids, dtype=np.int32)  # the line break after the end is forgotten
    (problem,) = round_trip_problems([good, good], encoder, "qwen")
    assert problem.startswith("`template: qwen`: prompt 1 (abc-0) has a target whose last tokens are [")
    assert "Use the template of the model, so that both end alike" in problem
