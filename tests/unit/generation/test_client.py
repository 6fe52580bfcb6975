# SPDX-License-Identifier: Apache-2.0
"""Requests through servers of each kind: what is sent, what comes back, and what is refused at the start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_tpaw.data.prompts import load_prompts
from llamafactory_tpaw.errors import ConfigError, GenerationError
from llamafactory_tpaw.generation.base import EngineContext, Failure, PromptRequests, Response, SamplingSettings
from llamafactory_tpaw.generation.client import ServerEngine, make_engine
from tests import encoders, tiny
from tests.runs import ADDITIONS, Project
from tests.servers.faulty import ScriptedServer


ROWS, CUTOFF, NEW = 6, 160, 8
Reply = Callable[[dict[str, Any]], tuple[int, Any]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("engine"), Path("theta_0"))
    project.add_dataset("sft", ADDITIONS[:ROWS], columns={"prompt": "question", "response": "answer"})
    return project


def prepare(project: Project, *urls: str, **changes: Any) -> tuple[ServerEngine, PromptRequests]:
    """An engine for servers, and what it is to answer."""
    keys = {"template": "llama3", "cutoff_len": CUTOFF, "tpaw_prompts": "sft", "max_new_tokens": NEW}
    keys |= {"tpaw_engine": "openai", "tpaw_engine_url": list(urls)}
    keys |= {"tpaw_engine_retries": 0, "tpaw_engine_startup": 2}
    run = encoders.parse(project, **(keys | changes))
    encoder = encoders.build_encoder(run)
    prompts = load_prompts(encoder, run.model, run.data, run.training, run.finetuning)
    settings = SamplingSettings.of({**vars(run.generating), "seed": run.training.seed})
    opponent = run.finetuning.tpaw_opponent_model or ""
    stops, model = tuple(encoder.stop_token_ids()), opponent or "theta_0"
    context = EngineContext(run, "theta_0", model, encoder, settings, "float32", stops, opponent=opponent)
    return make_engine(context, project.root / "x"), PromptRequests(prompts, 0, 1, settings.max_new_tokens, CUTOFF)


def answers_of(engine: ServerEngine, requests: PromptRequests) -> dict[int, Any]:
    given = [pair for pairs in engine.answer(requests, np.arange(len(requests))) for pair in pairs]
    assert len(given) == len(dict(given)) == ROWS
    return dict(given)


def serving(reply: Reply, version: str = "0.11.0", **entry: Any) -> ScriptedServer:
    """A server of `theta_0`; `reply` answers POST, whichever path."""
    told = {"/v1/models": (200, {"data": [{"id": "theta_0"} | entry]}), "/version": (200, {"version": version})}
    return ScriptedServer(
        lambda method, path, body: reply(body) if method == "POST" else told.get(path, (404, {"detail": "Not Found"}))
    )


def completion(prompt_tokens: int | None, **choice: Any) -> tuple[int, Any]:
    usage = {} if prompt_tokens is None else {"usage": {"prompt_tokens": prompt_tokens}}
    return 200, {"choices": [{"index": 0, "finish_reason": "stop"} | choice], **usage}


def like_vllm(body: dict[str, Any]) -> tuple[int, Any]:
    ids = [65, 66, 6]
    return completion(len(body["prompt"]), token_ids=ids, prompt_token_ids=body["prompt"], text="ab")


def taking_text(body: dict[str, Any]) -> tuple[int, Any] | None:
    return None if isinstance(body["prompt"], str) else (400, {"error": {"message": "prompt must be a string"}})


def counting(bos: bool) -> Reply:
    """A server of texts that counts as the run's tokenizer does, and puts a BOS before every text."""
    tokenizer = tiny.build_tokenizer("<|begin_of_text|>")

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        count = len(tokenizer.encode(str(body["prompt"]), add_special_tokens=False)) + bos
        return taking_text(body) or completion(count, text=body["prompt"][-3:] + "<|eot_id|>")

    return reply


def test_vllm_takes_and_gives_ids(project: Project) -> None:
    settings = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1}
    with serving(like_vllm, owned_by="vllm", max_model_len=CUTOFF) as server:
        engine, requests = prepare(project, server.url, **settings)
        assert answers_of(engine, requests) == dict.fromkeys(range(ROWS), Response([65, 66, 6], "stop"))
        bodies = server.bodies("/v1/completions")[1:]
    assert engine.version == "vLLM 0.11.0"
    assert engine.facts == {"served": "theta_0", "verified": False, "prompts": "ids", "responses": "ids"}
    by_prompt = {tuple(body["prompt"]): body for body in bodies}
    for request in map(requests.__getitem__, range(ROWS)):
        body = by_prompt[tuple(request.prompt_ids.tolist())]
        assert {key: body[key] for key in settings} == settings
        assert (body["max_tokens"], body["seed"]) == (NEW, request.seed(engine.context.settings.seed))
        assert (body["return_token_ids"], body["add_special_tokens"]) == (True, False)
        assert body["stop_token_ids"] == list(engine.context.stop_token_ids)
    assert len({body["seed"] for body in bodies}) == ROWS


@pytest.mark.parametrize("adds_bos", [False, True])
def test_text_is_read_as_the_same_tokens(project: Project, adds_bos: bool) -> None:
    with serving(counting(adds_bos)) as server:
        engine, requests = prepare(project, server.url, top_k=0)
        given = answers_of(engine, requests)
        bodies = server.bodies("/v1/completions")[-ROWS:]
    tokenizer = engine.context.encoder.tokenizer
    for body in bodies:
        ids = tokenizer.encode(body["prompt"], add_special_tokens=False)
        assert (tokenizer.bos_token_id in ids) is not adds_bos
        assert len(body["stop"]) <= 4
        assert body["stop"][0] == "<|eot_id|>"
        assert 0 <= body["seed"] < 2**31
        # Nothing that plain servers do not know.
        assert set(body) == {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop"}
    assert set(given.values()) == {Response(None, "stop", given[0].text)}
    assert engine.facts["prompts"] == engine.facts["responses"] == "text"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (lambda body: (404, {"detail": "Not Found"}), r"it answers 404 \(Not Found\)"),
        (lambda body: completion(99, text="a"), "it answers 200, but reads it as 99"),
        (lambda body: taking_text(body) or completion(0, text="a"), r"it answers 400 .*; it .* reads it as None"),
    ],
)
def test_servers_that_cannot_be_used(project: Project, reply: Reply, said: str) -> None:
    match = rf"does not take a prompt of \d+ tokens as this run has it: {said}\. Serve"
    with serving(reply) as server, pytest.raises(GenerationError, match=match):
        answers_of(*prepare(project, server.url))


def usage(prompt: Any, completion: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


@pytest.mark.parametrize("opponent", [None, "gpt"])
@pytest.mark.parametrize(
    ("usage_of", "is_right"),
    [
        (lambda prompt, most: None, True),
        (lambda prompt, most: usage(0, 0), True),
        (lambda prompt, most: usage(prompt, 0), True),
        (lambda prompt, most: usage(prompt, most - 1), True),
        (lambda prompt, most: usage(prompt, str(most)), True),
        (lambda prompt, most: usage(prompt, min(most, 3)), False),  # of one token right, then it has a lower limit
    ],
)
def test_counts_are_believed_where_the_first_is_right(
    project: Project, usage_of: Any, is_right: bool, opponent: str | None
) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        choice = {"message": {"content": "ab"}, "text": "ab", "finish_reason": "length", "token_ids": []}
        return 200, {"choices": [choice], "usage": usage_of(len(body.get("prompt", "?")), body["max_tokens"])}

    with serving(reply, id="gpt" if opponent else "theta_0", max_model_len="8") as server:
        given = answers_of(*prepare(project, server.url, tpaw_opponent_model=opponent))
    if is_right:
        assert set(given.values()) == {Response(None, "length", "ab")}
    else:
        assert all("it stopped after 3 tokens for length" in failure.reason for failure in given.values())


@pytest.mark.parametrize(
    ("entry", "changes", "message"),
    [
        ({}, {"top_k": 5, "repetition_penalty": 1.2}, "`top_k: 5`, `repetition_penalty: 1.2` cannot be passed on"),
        ({"owned_by": "vllm", "max_model_len": 40}, {}, "takes 40 tokens of prompt and response together, but"),
    ],
)
def test_settings_that_a_server_cannot_keep(project: Project, entry: Any, changes: Any, message: str) -> None:
    with serving(like_vllm, **entry) as server, pytest.raises(ConfigError, match=message):
        answers_of(*prepare(project, server.url, **changes))


@pytest.mark.parametrize(
    ("reply", "entry", "what"),
    [(like_vllm, {"owned_by": "vllm"}, "vLLM 0.11.0.* takes ids"), (counting(False), {}, "OpenAI's API.* takes text")],
)
def test_servers_must_be_alike(project: Project, reply: Reply, entry: dict[str, str], what: str) -> None:
    match = rf"is a server of OpenAI's API, serves theta_0 and takes ids, but \S+ is .*{what}\. Give addresses"
    with (
        serving(like_vllm) as first,
        serving(reply, **entry) as second,
        pytest.raises(GenerationError, match=match),
    ):
        answers_of(*prepare(project, first.url, second.url))


def test_prompts_that_no_text_stands_for_are_not_sent(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(counting(False)) as server:
        engine, requests = prepare(project, server.url)
        tokenizer, unreadable = engine.context.encoder.tokenizer, requests[4].prompt_ids.tolist()
        encode = tokenizer.encode
        text = tokenizer.decode(unreadable)
        monkeypatch.setattr(tokenizer, "encode", lambda given, **how: [0] if given == text else encode(given, **how))
        given = answers_of(engine, requests)
    assert [index for index, answer in given.items() if isinstance(answer, Failure)] == [4]
    assert "takes no token ids" in given[4].reason


def test_an_opponent_gets_messages(project: Project) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        return completion(3, message={"content": body["messages"][-1]["content"][:5]})

    with serving(reply, id="gpt") as server:
        engine, requests = prepare(project, server.url, tpaw_opponent_model="gpt")
        assert answers_of(engine, requests)[1] == Response(None, "stop", "Tom h")
        bodies = server.bodies("/v1/chat/completions")[1:]
    asked = [body["messages"] for body in bodies]
    assert sorted(map(json.dumps, asked)) == sorted(
        json.dumps([{"role": "user", "content": row["question"]}]) for row in ADDITIONS[:ROWS]
    )
    assert all(body["max_tokens"] == NEW for body in bodies)
