# SPDX-License-Identifier: Apache-2.0
"""What a server is asked at the start, what is concluded, and who gets its key."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError, GenerationError
from llamafactory_tpaw.generation.protocol import OTHER, TRANSFORMERS, VLLM
from llamafactory_tpaw.generation.server import Served, Server, api_key, examine, names_of
from tests.servers.scripted import ScriptedServer


SECRET = "geheim-0123"


def models(*entries: dict[str, Any], **others: Any) -> Any:
    """A server that lists models; `others` is what it says at further paths."""
    told = {"/v1/models": {"object": "list", "data": list(entries)}, **{f"/{path}": it for path, it in others.items()}}
    return lambda method, path, body: (200, told[path]) if path in told else (404, {"detail": "Not Found"})


def look(url: str, names: list[str]) -> Served:
    return asyncio.run(examine(url, names, SECRET))


def ask(url: str, path: str, *numbers: Any) -> tuple[int, Any]:
    async def run() -> tuple[int, Any]:
        server = Server(url, SECRET, *numbers)
        async with server.client:
            return await server.ask(path)

    return asyncio.run(run())


SCHEMA = {"paths": {"/load_model": {}, "/v1/completions": {}}}


def test_what_a_server_is(tmp_path: Path) -> None:
    path, name = str(tmp_path), tmp_path.name
    entry = {"id": "theta", "owned_by": "vllm", "root": path, "max_model_len": 512}
    with ScriptedServer(models(entry, version={"version": "0.11.0"})) as server:
        url = server.url
        assert look(url, names_of(None, path)) == Served(url, "vLLM 0.11.0", VLLM, "theta", True, 512)
        assert not look(url, ["theta"]).verified
        assert [path for _, path, _, _ in server.seen] == 2 * ["/v1/models", "/version"]
    with ScriptedServer(models({"id": name, "owned_by": "me"})) as server:
        assert look(server.url, names_of(None, path)) == Served(server.url, OTHER, OTHER, name, False)
    with ScriptedServer(models(**{"openapi.json": SCHEMA})) as server:
        found = look(server.url, ["/real/path", path, "mine"])
        assert found == Served(server.url, TRANSFORMERS, TRANSFORMERS, path, True)


def test_a_question_is_put_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafactory_tpaw.generation.server.AGAIN_S", 0.01)
    for first in ((0, "late"), (429, "busy"), (503, "loading")):
        answers = iter(3 * [first])
        with ScriptedServer(lambda *_, answers=answers: next(answers, (200, {}))) as server:
            assert ask(server.url, "/openapi.json", 0.3, 0, 1, 60.0) == (200, {})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda *_: (401, {"error": {"message": f"who is {SECRET}?"}}),
            r"answered 401 \(.*who is \.\.\.\?.*the key in",
        ),
        (lambda *_: (404, {"detail": "Not Found"}), r"/v1/models answered 404 .*Correct `tpaw_engine_url`"),
        (lambda *_: (200, ["theta"]), r"does not list its models"),
        (models(), r"serves nothing, but theta_0 is asked for"),
        (models(*({"id": f"m{i}"} for i in range(7))), r"serves m0, m1, m2, m3, m4, \.\.\., but theta_0 is asked"),
    ],
)
def test_what_is_not_served_is_refused(answer: Any, message: str) -> None:
    with ScriptedServer(answer) as server, pytest.raises(GenerationError, match=message):
        look(server.url, ["theta_0"])
    with pytest.raises(GenerationError, match=f"No server answers at {server.url} .*refused|Connect call.*Start it"):
        look(server.url, ["theta_0"])  # it is gone


def test_who_gets_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy before an address of this machine, one before others, and no target of a redirect."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ScriptedServer(lambda *_: (200, "proxy")) as proxy, ScriptedServer(lambda *_: (302, proxy.url)) as server:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        assert ask(server.url, "/models")[0] == 302
        assert ask("http://node1.invalid/v1", "/models") == (200, "proxy")
        assert server.seen == [("GET", "/v1/models", None, f"Bearer {SECRET}")]
        assert len(proxy.seen) == 1


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TPAW_ENGINE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert api_key() is None
    for name, key in (("OPENAI_API_KEY", "second"), ("TPAW_ENGINE_API_KEY", "first")):
        monkeypatch.setenv(name, f"{key}\n")
        assert api_key() == key
    for wrong in ("two words", "schl\u00fcssel", "a\nb"):
        monkeypatch.setenv("TPAW_ENGINE_API_KEY", wrong)
        with pytest.raises(ConfigError) as caught:
            api_key()
        assert wrong not in str(caught.value)
