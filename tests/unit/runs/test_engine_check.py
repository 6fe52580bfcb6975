# SPDX-License-Identifier: Apache-2.0
"""What `check` says of an engine without generating anything."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.errors import EnvironmentProblem, GenerationError
from llamafactory_tpaw.runs import engine_check
from llamafactory_tpaw.runs.engine_check import check_engine
from llamafactory_tpaw.runs.findings import Report
from tests.servers.scripted import ScriptedServer


def findings(given: dict[str, Any], to_generate: int = 1) -> list[tuple[str, int, str]]:
    report = Report()
    plan: Any = SimpleNamespace(
        given={"model_name_or_path": "saves/theta_1"} | given, to_generate=[None] * to_generate
    )
    check_engine(plan, report)
    return [(finding.level, finding.code, finding.message) for finding in report.findings]


def lists(name: str) -> Any:
    return lambda method, path, body: (200, {"data": [{"id": name}]}) if path == "/v1/models" else (404, "")


def test_servers_are_named_with_what_they_serve() -> None:
    with ScriptedServer(lists("theta_1")) as right, ScriptedServer(lists("theta_0")) as wrong:
        given = {"tpaw_engine": "openai", "tpaw_engine_url": f"{right.url},{wrong.url}"}
        (note, code, first), (error, other, second) = findings(given)
        assert findings(given, to_generate=0) == []
    assert (note, code, error, other) == ("note", 0, "error", GenerationError.exit_code)
    assert first.startswith(
        f"{right.url} answers: a server of OpenAI's API, serving theta_1, a name that says nothing"
    )
    assert second.startswith(f"The server at {wrong.url} serves theta_0, but saves/theta_1 or theta_1 is asked for.")


def test_an_opponent_is_looked_for_by_its_name() -> None:
    with ScriptedServer(lists("gpt")) as server:
        given = {"tpaw_engine": "openai", "tpaw_engine_url": server.url, "tpaw_opponent_model": "gpt"}
        assert [level for level, *_ in findings(given)] == ["note"]


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(engine_check, "ANSWER_S", 0.2)
    with ScriptedServer(lambda *_: (200, over.wait(60))) as server:
        (_, _, message), _ = findings({"tpaw_engine": "openai", "tpaw_engine_url": [server.url, server.url + "/x"]})
        over.set()
    assert message.startswith(f"No server answers at {server.url} (timed out)")


def test_vllm_is_looked_for(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    ((level, _, message),) = findings({"tpaw_engine": "vllm", "tpaw_vllm_command": str(program)})
    assert (level, message.partition(";")[0]) == ("note", f"`tpaw_engine: vllm` starts {program}")
    ((level, code, _),) = findings({"tpaw_engine": "vllm", "tpaw_vllm_command": str(tmp_path / "none")})
    assert (level, code) == ("error", EnvironmentProblem.exit_code)


@pytest.mark.parametrize(("engine", "package"), [("hf", "transformers"), ("openai", "openai"), ("vllm", "openai")])
def test_a_package_that_is_not_there(engine: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = engine_check.importlib.util.find_spec
    monkeypatch.setattr(engine_check.importlib.util, "find_spec", lambda name: None if name == package else find(name))
    keys = {"tpaw_engine_url": "http://localhost:1/v1"} if engine == "openai" else {}
    ((level, code, message),) = findings({"tpaw_engine": engine, **keys})
    assert (level, code) == ("error", EnvironmentProblem.exit_code)
    assert "not installed" in message


def test_the_hf_engine_is_there() -> None:
    assert findings({}) == []
