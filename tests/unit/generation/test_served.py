# SPDX-License-Identifier: Apache-2.0
"""What servers are asked at the start, and what is concluded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError, GenerationError
from llamafactory_tpaw.generation.protocol import OTHER, TRANSFORMERS, VLLM
from llamafactory_tpaw.generation.served import Answered, Inquiry, api_key, error_words, examine, names_of, on_loopback
from tests.servers.scripted import ScriptedServer


SECRET = "geheim-0123"


def models(*entries: dict[str, Any], **others: tuple[int, Any]) -> Any:
    """Answers of a server that lists models; `others` are answers to the last part of further paths."""

    def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"object": "list", "data": list(entries)}
        return others.get(path.rpartition("/")[2].partition(".")[0], (404, {"detail": "Not Found"}))

    return answer


def test_vllm_is_known_by_its_entry(tmp_path: Path) -> None:
    path = str(tmp_path)
    entry = {"id": "theta", "owned_by": "vllm", "root": path, "max_model_len": 512}
    with ScriptedServer(models(entry, version=(200, {"version": "0.11.0"}))) as server:
        served = examine(server.url, names_of(None, path), None)
        assert (served.kind, served.version, served.model) == (VLLM, "0.11.0", "theta")
        assert (served.verified, served.max_tokens, served.title) == (True, 512, "vLLM 0.11.0")
        assert not examine(server.url, ["theta"], None).verified


def test_a_plain_server_lists_a_name(tmp_path: Path) -> None:
    with ScriptedServer(models({"id": tmp_path.name, "owned_by": "me"})) as server:
        served = examine(server.url, names_of(None, str(tmp_path)), None)
    assert (served.kind, served.version, served.verified, served.max_tokens) == (OTHER, "", False, None)


def test_transformers_serve_says_what_it_is_pinned_to(tmp_path: Path) -> None:
    schema = (200, {"paths": {"/load_model": {}, "/v1/completions": {}}})
    pinned = (400, {"detail": f"Server is pinned to '{tmp_path}'; requested '--'."})
    with ScriptedServer(models(openapi=schema, completions=pinned)) as server:
        served = examine(server.url, names_of(None, str(tmp_path)), None)
        assert (served.kind, served.model, served.verified) == (TRANSFORMERS, str(tmp_path), True)
        with pytest.raises(GenerationError, match=f"serves {tmp_path}, but other is asked for"):
            examine(server.url, ["other"], None)
    with ScriptedServer(models(openapi=schema, completions=(500, "Internal Server Error"))) as server:
        assert examine(server.url, ["mine", str(tmp_path)], None).model == str(tmp_path)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda *_: (401, {"error": {"message": "who?"}}), r"asks for a key \(401\). Set the environment variable"),
        (lambda *_: (404, {"detail": "Not Found"}), r"/v1/models answered 404. Correct `tpaw_engine_url`"),
        (lambda *_: (200, ["theta"]), r"does not list its models"),
        (models(), r"serves nothing, but theta_0 is asked for"),
        (models(*({"id": f"m{i}"} for i in range(7))), r"serves m0, m1, m2, m3, m4 and 2 more, but theta_0 is asked"),
    ],
)
def test_what_is_not_served_is_refused(answer: Any, message: str) -> None:
    with ScriptedServer(answer) as server, pytest.raises(GenerationError, match=message):
        examine(server.url, ["theta_0"], None)


def test_nothing_there() -> None:
    with ScriptedServer(lambda *_: (200, {})) as server:
        url = server.url
    with pytest.raises(GenerationError, match=f"No server answers at {url} .*refused.*Start it"):
        Inquiry(url, SECRET, 5.0, patience_s=600.0).examine(["a"])
    with pytest.raises(GenerationError, match=r"refused.*\). See its log\."):
        Inquiry(url, SECRET, 5.0, advice="See its log.").examine(["a"])


def test_which_addresses_are_of_this_machine() -> None:
    assert all(on_loopback(f"http://{host}:8000/v1") for host in ("127.0.0.1", "127.1.2.3", "[::1]", "localhost"))
    assert not any(on_loopback(f"http://{host}/v1") for host in ("node1", "10.0.0.1", "localhost.example.org"))


def test_no_proxy_stands_before_this_machine_and_one_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ScriptedServer(lambda *_: (200, {})) as server, ScriptedServer(lambda *_: (200, "proxy")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        assert Inquiry(server.url, None, 5.0).ask("/models").content == {}
        assert Inquiry("http://node1.invalid/v1", None, 5.0).ask("/models").content == "proxy"
        assert len(server.seen) == len(proxy.seen) == 1


def test_the_key_goes_in_the_header_alone() -> None:
    said = {"error": {"message": f"Incorrect key {SECRET}"}}
    with ScriptedServer(lambda *_: (500, said)) as server:
        answer = Inquiry(server.url, SECRET, 5.0).ask("/completions", {"prompt": "a"})
        assert answer == Answered(500, {"error": {"message": "Incorrect key ..."}})
        assert server.seen == [("POST", "/v1/completions", {"prompt": "a"}, f"Bearer {SECRET}")]


def test_a_redirect_takes_the_key_nowhere() -> None:
    with ScriptedServer(lambda *_: (200, {})) as other:
        with ScriptedServer(lambda *_: (302, other.url)) as server:
            assert Inquiry(server.url, SECRET, 5.0).ask("/models").status == 302
        assert other.seen == []


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPAW_ENGINE_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert api_key() is None
    monkeypatch.setenv("OPENAI_API_KEY", "second\n")
    assert api_key() == "second"
    monkeypatch.setenv("TPAW_ENGINE_API_KEY", "first")
    assert api_key() == "first"
    for wrong in ("two words", "schl\u00fcssel", "a\nb"):
        monkeypatch.setenv("TPAW_ENGINE_API_KEY", wrong)
        with pytest.raises(ConfigError) as caught:
            api_key()
        assert wrong not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"error": {"message": "no\n  room", "code": 7}}, "no room"),
        ({"error": {"detail": "gone"}}, "gone"),
        ({"message": "vLLM", "object": "error"}, "vLLM"),
        ({"detail": [{"msg": "field"}]}, '[{"msg": "field"}]'),
        ("half of a character: \ud83d", "half of a character: ?"),
        ("x" * 400, "x" * 300),
    ],
)
def test_what_servers_say_of_errors(content: Any, words: str) -> None:
    assert error_words(content) == words
