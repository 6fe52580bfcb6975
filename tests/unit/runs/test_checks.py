# SPDX-License-Identifier: Apache-2.0
"""What is checked beyond settings: engines and their servers, and the token round trip."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llamafactory_tpaw.arguments.checks import read_tpaw_args
from llamafactory_tpaw.data.encoding import TurnEncoder
from llamafactory_tpaw.data.prompts import Prompt
from llamafactory_tpaw.errors import ConfigError, EnvironmentProblem, Findings, GenerationError, TpawError
from llamafactory_tpaw.runs import checks
from llamafactory_tpaw.runs.checks import check_engine, refuse_engine, round_trip_problems
from tests import encoders
from tests.runs import Project
from tests.servers.scripted import ScriptedServer


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
    (first,), ((second, code),) = found.remarks, found.problems.items()
    assert code == GenerationError.exit_code
    assert first.startswith(
        f"{right.url} answers: a server of OpenAI's API, serving theta_1, a name that says nothing"
    )
    assert second.startswith(f"The server at {wrong.url} serves theta_0, but saves/theta_1 or theta_1 is asked for.")


def test_an_opponent_is_looked_for_by_its_name() -> None:
    with ScriptedServer(lists("gpt")) as server:
        given = {"tpaw_engine": "openai", "tpaw_engine_url": server.url, "tpaw_opponent_model": "gpt"}
        assert engine(given).exit_code == 0


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
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    ((message, code),) = engine({"tpaw_engine": name, "tpaw_engine_url": "http://localhost:1/v1"}).problems.items()
    assert code == EnvironmentProblem.exit_code
    assert "not installed" in message


def test_the_hf_engine_is_there() -> None:
    found = engine({})
    assert (found.exit_code, found.remarks) == (0, [])


@pytest.mark.parametrize("there", [True, False])
def test_ray_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: object() if there else None)
    refuse_engine({})  # without USE_RAY it is not needed
    monkeypatch.setenv("USE_RAY", "1")
    if there:
        refuse_engine({})
    else:
        with pytest.raises(EnvironmentProblem, match="Ray is not installed"):
            refuse_engine({})


@pytest.mark.parametrize(
    ("config", "given", "problem"),
    [
        ({"zero_optimization": {"stage": 3}}, {"do_train": True}, "would not be saved as a model"),
        ({"zero_optimization": {"stage": 2}}, {"do_eval": True}, "cannot evaluate with unless it trains"),
        ({}, {"do_train": True, "use_cpu": True}, "accelerate leaves DeepSpeed's start out"),
        ([], {"do_train": True}, "must hold a JSON object"),
    ],
)
def test_deepspeed_that_cannot_work(
    config: Any, given: dict[str, Any], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=problem):
        refuse_engine(given | {"deepspeed": str(path)})


def test_deepspeed_without_torchrun_and_fsdp_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_TORCHRUN", raising=False)
    with pytest.raises(TpawError) as caught:
        refuse_engine({"deepspeed": {"steps_per_print": 1}, "fsdp": "full_shard", "use_cpu": True, "do_train": True})
    assert [problem.split(",")[0] for problem in caught.value.problems] == [
        "`deepspeed` is set",
        "`deepspeed` is set with `use_cpu`",
        "`fsdp` is set with `use_cpu`",
    ]


# -- the token round trip


MESSAGES = [{"role": "user", "content": " How many?\n"}]


def encoder_of(tiny_model: Path, tmp_path: Path, template: str) -> TurnEncoder:
    return encoders.build_encoder(encoders.parse(Project(tmp_path, tiny_model), template=template))


def prompt_of(encoder: TurnEncoder, text: str = " 7 apples. \n") -> Prompt:
    target = {"role": "assistant", "content": text}
    prompt_ids, target_ids = encoder.encode(MESSAGES, target, "", "")
    return Prompt("abc-0", MESSAGES, "", "", target, prompt_ids, target_ids)


def changed(prompt: Prompt, **changes: Any) -> Prompt:
    return Prompt(**(vars(prompt) | changes))


@pytest.mark.parametrize("template", encoders.TEMPLATES)
def test_real_templates_come_back_as_the_same_tokens(tiny_model: Path, tmp_path: Path, template: str) -> None:
    encoder = encoder_of(tiny_model, tmp_path, template)
    assert round_trip_problems([prompt_of(encoder)], encoder, template) == []


def test_each_break_is_named_once_with_the_first_prompt(tiny_model: Path, tmp_path: Path) -> None:
    encoder = encoder_of(tiny_model, tmp_path, "llama3")
    good = prompt_of(encoder)
    bos, eos = encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id
    doubled = changed(good, prompt_ids=np.concatenate([[bos], good.prompt_ids]).astype(np.int32))
    ended = changed(good, target_ids=np.concatenate([good.target_ids, [eos, eos]]).astype(np.int32))
    problems = round_trip_problems([good, doubled, doubled, ended], encoder, "llama3")
    texts = " | ".join(problems)
    assert "prompt 2 (abc-0) is written to a triplet file and read back as other tokens" in texts
    assert "prompt 2 (abc-0) begins with two BOS (<|begin_of_text|>)" in texts
    assert "prompt 4 (abc-0) has a target that ends with two EOS" in texts
    assert not any("prompt 3" in problem for problem in problems)


def test_a_response_that_would_not_end_as_its_target(tiny_model: Path, tmp_path: Path) -> None:
    encoder = encoder_of(tiny_model, tmp_path, "qwen")
    good = prompt_of(encoder)
    encoder.finish = lambda ids, reason: np.asarray(ids, dtype=np.int32)  # the line break after the end is forgotten
    (problem,) = round_trip_problems([good], encoder, "qwen")
    assert "Use the template of the model, so that both end alike" in problem
    assert problem.startswith("`template: qwen`: prompt 1 (abc-0) has a target whose last tokens are [")
