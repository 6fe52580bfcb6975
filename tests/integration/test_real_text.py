# SPDX-License-Identifier: Apache-2.0
"""Real text: no row is dropped or doubled, prompts keep their tokens, target and generated response end alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from llamafactory.data import get_dataset

from llamafactory_tpaw.data.encoding import CLOCK
from llamafactory_tpaw.data.opponents import Limits, load_triplets
from llamafactory_tpaw.data.prompts import PromptSet
from llamafactory_tpaw.data.source import triplet_entry
from llamafactory_tpaw.data.triplets import read_meta
from llamafactory_tpaw.generation.base import Answers, PromptRequests, Response, ignore
from llamafactory_tpaw.generation.workflow import run_job
from tests import encoders
from tests.runs import Project
from tests.unit.generation.conftest import make_job


pytestmark = pytest.mark.integration

PROBLEMS = 100
CUTOFF = 1024
TURNED_THOUGHT = "<think>\nNine fours.\n</think>\n\n"

COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}
ALPACA_ROWS = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {
        "instruction": "Und jetzt größer?",
        "output": "4 > 3\n",
        "history": [["Is 漢字 text?", "Yes — it is.\u2028"], [" Sure? ", "Sure."]],
        "system": "Be brief.",
    },
    {
        "instruction": "How many fours in 36?",
        "output": f"{TURNED_THOUGHT}Nine.",
        "history": [["First?", f"{TURNED_THOUGHT}One."]],
    },
    {"instruction": "Say <|im_end|> and <|eot_id|>.", "output": " no \n\n"},
]
NUMBERS = {name: {"type": "number", "description": name} for name in ("a", "b")}
PARAMETERS = {"type": "object", "properties": NUMBERS, "required": ["a", "b"]}
TOOLS = json.dumps([{"name": "multiply", "description": "Multiply two numbers.", "parameters": PARAMETERS}])
CALL = json.dumps({"name": "multiply", "arguments": {"a": 6, "b": 7}})
SHAREGPT = {"formatting": "sharegpt", "columns": {"messages": "talk", "system": "system", "tools": "tools"}}
# System, tools, and the messages by role.
TALKS = [
    ("You calculate.", TOOLS, "human", "Hello", "gpt", "Hello.", "human", "6 x 7?", "function_call", CALL,
        "observation", "42", "gpt", "It is 42."),
    ("", TOOLS, "human", "6 x 7?", "function_call", CALL),
    ("You chat.", "", "human", "Thanks", "gpt", f"{TURNED_THOUGHT}Welcome.", "human", "Bye?", "gpt", "Bye\n"),
]  # fmt: skip
SHAREGPT_ROWS = [
    {
        "talk": [{"from": role, "value": text} for role, text in zip(messages[::2], messages[1::2], strict=True)],
        "system": system,
        "tools": tools,
    }
    for system, tools, *messages in TALKS
]
FORMATS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "alpaca": (ALPACA_ROWS, {"columns": COLUMNS}),
    "sharegpt": (SHAREGPT_ROWS, SHAREGPT),
    "gsm8k": ([], {"columns": {"prompt": "question", "response": "answer"}}),
}


class TargetEngine:
    """Answers every prompt with its target's tokens, as the model would sample them, or the first one of them."""

    name, version = "target", "1"

    def __init__(self, prompts: PromptSet, stop_token_ids: Sequence[int], at_limit: bool) -> None:
        self.targets = {prompt.id: prompt.target_ids.tolist() for prompt in prompts.prompts}
        self.stop_token_ids, self.at_limit = stop_token_ids, at_limit
        self.asked: dict[str, list[int]] = {}

    def answer(
        self, requests: PromptRequests, left: np.ndarray, finished: Callable[[int], object] = ignore
    ) -> Iterator[Answers]:
        asked = {index: requests[index] for index in left.tolist()}
        self.asked |= {request.id: request.prompt_ids.tolist() for request in asked.values()}
        yield [(index, self.respond(self.targets[request.id])) for index, request in asked.items()]

    def respond(self, target: list[int]) -> Response:
        if self.at_limit:
            return Response(target[:1], "length")
        stop = next(index for index, token in enumerate(target) if token in self.stop_token_ids)
        return Response(target[: stop + 1], "stop")


@pytest.mark.parametrize("at_limit", [False, True])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("template", [*((name, True) for name in encoders.TEMPLATES), ("qwen3", False)], ids=str)
def test_prompts_targets_and_responses_keep_their_tokens(
    tmp_path: Path, request: pytest.FixtureRequest, template: tuple[str, bool], form: str, at_limit: bool
) -> None:
    """What the engine is given, what training is given and what LlamaFactory's `dpo` stage reads are the same ids."""
    rows, entry = FORMATS[form]
    if form == "gsm8k":
        lines = (request.getfixturevalue("gsm8k") / "train.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines[:PROBLEMS]]
    project = Project(tmp_path, tmp_path / "theta_0")
    project.add_dataset(form, rows, **entry)
    project.add_entry("d0", triplet_entry("d0"))
    given = {"template": template[0], "enable_thinking": template[1], "cutoff_len": CUTOFF}
    run = encoders.parse(project, **given, dataset="d0", tpaw_prompts=form)
    encoder = encoders.build_encoder(run)
    job = make_job(run, encoder, 0)
    prompts = job.prompts
    assert len({prompt.id for prompt in prompts.prompts}) == len(rows)
    engine = TargetEngine(prompts, encoder.stop_token_ids(), at_limit)
    meta = run_job(job, lambda: engine)
    triplets = load_triplets(job.round.entry, read_meta(job.round.entry.path), encoder, Limits(CUTOFF, 1, 0))
    assert engine.asked == {triplet.id: triplet.prompt_ids.tolist() for triplet in triplets}
    assert [triplet.id for triplet in triplets] == [prompt.id for prompt in prompts.prompts]
    end = encoder.end_of_turn
    for prompt, triplet in zip(prompts.prompts, triplets, strict=True):
        assert triplet.prompt_ids.tolist() == prompt.prompt_ids.tolist()
        assert triplet.target_ids.tolist() == prompt.target_ids.tolist()
        assert triplet.target_ids[-len(end) :].tolist() == end
        generated = triplet.target_ids[:1] if at_limit else triplet.target_ids
        assert triplet.generated_ids.tolist() == generated.tolist()
        assert triplet.truncated == at_limit
        if bos := encoder.tokenizer.bos_token_id:
            assert [*triplet.prompt_ids, *triplet.target_ids].count(bos) == 1 == [*triplet.prompt_ids].index(bos) + 1
    if at_limit:
        return
    assert meta.counts["equal"] == meta.counts["stop"] == len(triplets)
    with mock.patch("llamafactory.data.tool_utils.datetime", CLOCK):  # where `dpo` writes the day
        pairs = get_dataset(encoder.template, run.model, run.data, run.training, "rm", encoder.tokenizer)
    for triplet, pair in zip(triplets, pairs["train_dataset"], strict=True):
        assert pair["chosen_input_ids"] == [*triplet.prompt_ids, *triplet.target_ids]
        assert pair["rejected_input_ids"] == [*triplet.prompt_ids, *triplet.generated_ids]
