# SPDX-License-Identifier: Apache-2.0
"""What a server is asked at the start, what is concluded, and who gets its key."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError, GenerationError
from llamafactory_tpaw.generation import server as server_module
from llamafactory_tpaw.generation.protocol import OTHER, TRANSFORMERS, VLLM
from llamafactory_tpaw.generation.server import Served, Server, api_key, examine, names_of, proxy_of
from tests.servers.faulty import ScriptedServer
from tests.servers.rounds import keys_of


SECRET = "geheim-0123"


def models(*entries: dict[str, Any], **others: Any) -> Any:
    """A server that lists models; `others` is what it says at further paths."""
    told = {"/v1/models": {"object": "list", "data": list(entries)}, **{f"/{path}": it for path, it in others.items()}}
    return lambda method, path, body: (200, told[path]) if path in told else (404, {"detail": "Not Found"})


def look(url: str, names: list[str]) -> Served:
    return asyncio.run(examine(url, names, SECRET, keys_of()))


def ask(url: str, path: str, own: Any = None, **keys: Any) -> tuple[int, Any]:
    async def run() -> tuple[int, Any]:
        server = Server(url, SECRET, keys_of(**keys), own)
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
    monkeypatch.setattr(server_module, "AGAIN_S", 0.01)
    monkeypatch.setattr(server_module, "QUESTIONS", {"models": 0.2, "openapi.json": 30.0})
    for path, first in (("/models", (0, "late")), ("/openapi.json", (429, "busy")), ("/models", (503, "loading"))):
        answers = iter(3 * [first])
        with ScriptedServer(lambda *_, answers=answers: next(answers, (200, {}))) as server:
            assert ask(server.url, path, engine_timeout=600.0) == (200, {})


def test_each_question_has_its_time_and_no_run_ends_by_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "QUESTIONS", {"models": 0.2, "openapi.json": 30.0})

    def say(method: str, path: str, body: Any) -> tuple[int, Any]:
        time.sleep(0.5 if path == "/openapi.json" else 0)
        return models({"id": "theta", "owned_by": "me"})(method, path, body)

    with ScriptedServer(say) as server:
        assert look(server.url, ["theta"]).kind == OTHER
        assert [path for _, path, _, _ in server.seen] == ["/v1/models", "/openapi.json"]


def test_advice_fits_who_started_the_server(caplog: pytest.LogCaptureFixture) -> None:
    own: Any = SimpleNamespace(check=lambda: None, advice="Look at its log.")
    quota = {"error": {"code": "insufficient_quota", "message": "pay"}}
    with ScriptedServer(lambda *_: (429, quota)) as server:
        assert ask(server.url, "/models", own) == (429, "pay")  # it does not get better by waiting
    with pytest.raises(GenerationError, match=r"No server answers at .*: .*\. Look at its log\.$"):
        ask(server.url, "/models", own)
    assert "again" not in caplog.text  # where nothing listens, nothing is waited for

    def ended() -> None:
        raise GenerationError("The server ended with exit code 7")

    with pytest.raises(GenerationError, match="exit code 7"):
        ask(server.url, "/models", SimpleNamespace(check=ended, advice=""))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda *_: (401, {"error": {"message": f"who is {SECRET}?"}}),
            r"answered 401 \(.*who is \.\.\.\?.*the key in",
        ),
        (
            lambda *_: (404, {"detail": "Not Found"}),
            r"/v1 does not list .* /models answered 404 .*Correct `tpaw_engine_url`",
        ),
        (lambda *_: (200, ["theta"]), r"does not list its models"),
        (models(), r"serves nothing, but theta_0 is asked for"),
        (models(*({"id": f"m{i}"} for i in range(7))), r"serves m0, m1, m2, m3, m4, \.\.\., but theta_0 is asked"),
    ],
)
def test_what_is_not_served_is_refused(answer: Any, message: str) -> None:
    with ScriptedServer(answer) as server, pytest.raises(GenerationError, match=message):
        look(server.url, ["theta_0"])
    with pytest.raises(GenerationError, match=rf"No server answers at {server.url}: .*refused|Connect call.*\. Start"):
        look(server.url, ["theta_0"])  # it is gone


def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


NODE, SOCKS = "http://node1.invalid:8000/v1", "socks://me:geheim@127.0.0.1:7891/"


@pytest.mark.parametrize(
    ("variables", "url", "found"),
    [
        ({"HTTP_PROXY": "http://a:1", "all_proxy": SOCKS}, NODE, ("http://a:1", "HTTP_PROXY")),
        ({"all_proxy": "me:geheim@a:1"}, NODE, ("http://me:geheim@a:1", "all_proxy")),
        ({"http_proxy": "http://a:1"}, NODE.replace("http", "https"), (None, "")),
        ({"ALL_PROXY": SOCKS, "NO_PROXY": "a.b, .invalid"}, NODE, (None, "")),
        ({"ALL_PROXY": SOCKS, "no_proxy": "10.0.0.0/8"}, "http://10.1.2.3:8000/v1", (None, "")),
        ({"ALL_PROXY": SOCKS}, "http://127.0.1.1:8000/v1", (None, "")),
        ({"ALL_PROXY": SOCKS}, NODE, None),
        ({"HTTP_PROXY": "http://me:geheim@a:port"}, NODE, None),
    ],
)
def test_which_proxy(variables: dict[str, str], url: str, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_proxies(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if found:
        assert proxy_of(url) == found
        return
    (name,) = variables
    with pytest.raises(ConfigError, match=f"`{name}` puts a proxy before {url} that is not.*`NO_PROXY`") as caught:
        ask(url, "/models")
    assert "geheim" not in str(caught.value)


def test_a_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without_proxies(monkeypatch)
    with ScriptedServer(lambda *_: (407, "who?")) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url.removesuffix("/v1"))
        with pytest.raises(GenerationError, match=r"through the proxy in `ALL_PROXY`\) does not list .* 407"):
            look(NODE, ["theta_0"])
    match = rf"No server answers at {NODE} \(through the proxy in `ALL_PROXY`\): .*\. Correct `ALL_PROXY`, or add the"
    with pytest.raises(GenerationError, match=match):
        look(NODE, ["theta_0"])


def test_who_gets_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy before an address of this machine, one before others, and no target of a redirect."""
    without_proxies(monkeypatch)
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
