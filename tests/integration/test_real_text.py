# SPDX-License-Identifier: Apache-2.0
"""Real text: no row is dropped or doubled, prompts keep their tokens, target and generated response end alike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from llamafactory.data import get_dataset
from transformers import AutoModelForCausalLM

from llamafactory_tpaw.data.layout import Row, lay_out
from llamafactory_tpaw.data.opponents import Limits, Triplet, load_triplets
from llamafactory_tpaw.data.prompts import PromptSet, load_prompts
from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.source import find_entry, triplet_entry
from llamafactory_tpaw.data.triplets import read_meta, read_triplets
from llamafactory_tpaw.generation.base import Request, Response, SamplingSettings, ignore
from llamafactory_tpaw.generation.hf import HfEngine
from llamafactory_tpaw.generation.workflow import Job, run_job
from tests import encoders
from tests.runs import Project, Result


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from llamafactory_tpaw.data.encoding import TurnEncoder
    from llamafactory_tpaw.generation.base import Answers, PromptRequests

pytestmark = pytest.mark.integration

PROBLEMS = 100
PLAYED = {"tpaw_prompts": "problems", "cutoff_len": 1024, "max_new_tokens": 8, "max_steps": 3}
CUTOFF = 1024
TURNED_THOUGHT = "<think>\nNine fours.\n</think>\n\n"

ALPACA = {
    "columns": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "history": "history",
        "system": "system",
    }
}
ALPACA_ROWS = [
    {"instruction": "Add.", "input": "1, 2", "output": "3", "history": [], "system": ""},
    {
        "instruction": "Und jetzt größer?",
        "input": "",
        "output": "4 > 3\n",
        "history": [["Is 漢字 text?", "Yes — it is.\u2028"], [" Sure? ", "Sure."]],
        "system": "Be brief.",
    },
    {
        "instruction": "How many fours in 36?",
        "input": "",
        "output": f"{TURNED_THOUGHT}Nine.",
        "history": [["First?", f"{TURNED_THOUGHT}One."]],
        "system": "",
    },
    {"instruction": "Say <|im_end|> and <|eot_id|>.", "input": "", "output": " no \n\n", "history": [], "system": ""},
]
TOOLS = [
    {
        "name": "multiply",
        "description": "Multiply two numbers.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "number", "description": "one"},
                "b": {"type": "number", "description": "two"},
            },
            "required": ["a", "b"],
        },
    }
]
CALL = json.dumps({"name": "multiply", "arguments": {"a": 6, "b": 7}})
SHAREGPT = {"formatting": "sharegpt", "columns": {"messages": "talk", "system": "system", "tools": "tools"}}
SHAREGPT_TALKS = [
    [("human", "Hello"), ("gpt", "Hello."), ("human", "6 x 7?"), ("function_call", CALL), ("observation", "42")],
    [("human", "6 x 7?")],
    [("human", "Thanks"), ("gpt", f"{TURNED_THOUGHT}Welcome."), ("human", "Bye?")],
]
SHAREGPT_RESPONSES = [("gpt", "It is 42."), ("function_call", CALL), ("gpt", "Bye\n")]
SHAREGPT_ROWS = [
    {
        "talk": [{"from": role, "value": content} for role, content in [*talk, response]],
        "system": system,
        "tools": json.dumps(TOOLS) if tools else "",
    }
    for talk, response, system, tools in zip(
        SHAREGPT_TALKS, SHAREGPT_RESPONSES, ("You calculate.", "", "You chat."), (True, True, False), strict=True
    )
]
FORMATS = {"alpaca": (ALPACA_ROWS, ALPACA), "sharegpt": (SHAREGPT_ROWS, SHAREGPT)}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, gsm8k: Path) -> tuple[Project, list[Result]]:
    """Iterations 0 and 1 on the first GSM8K problems, each by one command."""
    project = Project(tmp_path_factory.mktemp("real"), tiny_model)
    with (gsm8k / "train.jsonl").open(encoding="utf-8") as stream:
        rows = [json.loads(next(stream)) for _ in range(PROBLEMS)]
    project.add_dataset("problems", rows, columns={"prompt": "question", "response": "answer"})
    results = [project.train(project.settings(iteration, **PLAYED)) for iteration in (0, 1)]
    for result in results:
        assert result.code == 0, result.output
    return project, results


def test_no_row_of_gsm8k_is_dropped_or_doubled(real: tuple[Project, list[Result]]) -> None:
    project, results = real
    run = encoders.parse(project, **PLAYED)
    encoder = encoders.build_encoder(run)
    prompts = load_prompts(encoder, run.model, run.data, run.training, run.finetuning)
    ids = [prompt.id for prompt in prompts.prompts]
    assert len(set(ids)) == PROBLEMS
    texts = []
    for iteration in (0, 1):
        rows = project.triplets(f"play_iter{iteration}")
        assert [row["id"] for row in rows] == ids
        assert {row["iteration"] for row in rows} == {iteration}
        assert [row["chosen"]["value"] for row in rows] == [prompt.target["content"] for prompt in prompts.prompts]
        texts.append([row["rejected"]["value"] for row in rows])
        meta = read_meta(project.root / "data" / "tpaw" / f"play_iter{iteration}.jsonl")
        assert (meta.rows, meta.counts["bad_rows"]) == (PROBLEMS, 0)
        assert f"Num examples = {PROBLEMS * (iteration + 1)}" in results[iteration].output
    assert texts[0] != texts[1]


def test_gsm8k_is_trained_on_the_tokens_it_was_generated_from(real: tuple[Project, list[Result]]) -> None:
    project, _ = real
    run = encoders.parse(project, **PLAYED)
    encoder = encoders.build_encoder(run)
    prompts = load_prompts(encoder, run.model, run.data, run.training, run.finetuning)
    for iteration in (0, 1):
        triplets, rows = load(run, encoder, f"play_iter{iteration}", run.data.cutoff_len)
        check_alike(encoder, prompts, triplets, rows)
        assert {triplet.iteration for triplet in triplets} == {iteration}


class TargetEngine:
    """Answers every prompt with its target's own tokens, as the model would sample them."""

    name, version = "target", "1"

    def __init__(self, prompts: PromptSet, stop_token_ids: Sequence[int], limit: int | None = None) -> None:
        self.targets = {prompt.id: prompt.target_ids.tolist() for prompt in prompts.prompts}
        self.stop_token_ids = stop_token_ids
        self.limit = limit
        self.asked: dict[str, list[int]] = {}

    def answer(
        self, requests: PromptRequests, left: np.ndarray, finished: Callable[[int], object] = ignore
    ) -> Iterator[Answers]:
        asked = {index: requests[index] for index in left.tolist()}
        self.asked |= {request.id: request.prompt_ids.tolist() for request in asked.values()}
        yield [(index, self.respond(self.targets[request.id])) for index, request in asked.items()]

    def respond(self, target: list[int]) -> Response:
        if self.limit is not None:
            return Response(target[: self.limit], "length")
        stop = next(index for index, token in enumerate(target) if token in self.stop_token_ids)
        return Response(target[: stop + 1], "stop")


class RecordingEngine(HfEngine):
    """The transformers engine, one prompt after another, which writes down what the model is given."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked: dict[str, list[int]] = {}

    def generate(self, requests: Sequence[Request], finished: Callable[[int], object] = ignore) -> list[Response]:
        return [self.record(request) for request in requests]

    def record(self, request: Request) -> Response:
        given: list[int] = []
        hook = self.model.model.register_forward_pre_hook(
            lambda _, __, inputs: given.extend(inputs["input_ids"][0].tolist()), with_kwargs=True
        )
        (response,) = super().generate([request])
        hook.remove()
        self.asked[request.id] = given[: len(request.prompt_ids)]
        assert given[len(request.prompt_ids) :] == response.ids[:-1]
        return response


@pytest.fixture(params=[*((name, True) for name in encoders.TEMPLATES), ("qwen3", False)], ids=str)
def templated(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Project, Any, TurnEncoder]:
    template, thinking = request.param
    project = Project(tmp_path, tmp_path / "theta_0")
    run = encoders.parse(project, template=template, cutoff_len=CUTOFF, enable_thinking=thinking, dataset="d0")
    return project, run, encoders.build_encoder(run)


def make_job(project: Project, run: Any, encoder: TurnEncoder, form: str) -> Job:
    rows, entry = FORMATS[form]
    project.add_dataset(form, rows, **entry)
    project.add_entry("d0", triplet_entry("d0"))
    run.finetuning.tpaw_prompts = form
    prompts = load_prompts(encoder, run.model, run.data, run.training, run.finetuning)
    assert len(prompts.prompts) == len(rows)
    return Job(
        round=Round(0, find_entry("d0", run.data.dataset_dir)),
        prompts=prompts,
        selection={"tpaw_max_prompts": None},
        encoder=encoder,
        generator="a" * 64,
        generator_path="theta_0",
        settings=SamplingSettings.of(vars(run.generating) | {"seed": 0}),
        engine={"name": "test", "version": "1", "dtype": "float32"},
        cutoff_len=CUTOFF,
    )


def load(run: Any, encoder: TurnEncoder, name: str, cutoff_len: int = CUTOFF) -> tuple[list[Triplet], list[Any]]:
    """Read a round as training does, and its rows as they are on disk."""
    entry = find_entry(name, run.data.dataset_dir)
    meta = read_meta(entry.path)
    return load_triplets(entry, meta, encoder, Limits(cutoff_len, 1, 0)), list(read_triplets(entry.path, meta))


def check_alike(encoder: TurnEncoder, prompts: PromptSet, triplets: list[Triplet], rows: list[Any]) -> None:
    """Prompts are those of generation; both responses have the template's end of turn, or none where none was."""
    end = encoder.end_of_turn
    assert end
    assert [triplet.id for triplet in triplets] == [prompt.id for prompt in prompts.prompts]
    for prompt, triplet, row in zip(prompts.prompts, triplets, rows, strict=True):
        assert triplet.prompt_ids.tolist() == prompt.prompt_ids.tolist()
        assert triplet.target_ids.tolist() == prompt.target_ids.tolist()
        assert triplet.target_ids[-len(end) :].tolist() == end
        generated, sampled = triplet.generated_ids.tolist(), row.generated_ids
        if row.finish_reason == "length":
            assert generated == sampled
            assert triplet.truncated
            assert not set(generated) & set(encoder.stop_token_ids())
        elif sampled[-1] in end:
            assert generated == [*sampled[:-1], *end[end.index(sampled[-1]) :]]
        else:
            assert generated == sampled


@pytest.mark.parametrize("form", FORMATS)
def test_a_perfect_model_generates_its_targets(templated: Any, form: str) -> None:
    """What the engine is given, what training is given and what LlamaFactory's `dpo` stage reads are the same ids."""
    project, run, encoder = templated
    job = make_job(project, run, encoder, form)
    engine = TargetEngine(job.prompts, encoder.stop_token_ids())
    meta = run_job(job, lambda: engine)
    triplets, rows = load(run, encoder, "d0")
    check_alike(encoder, job.prompts, triplets, rows)
    assert engine.asked == {triplet.id: triplet.prompt_ids.tolist() for triplet in triplets}
    assert all(triplet.equal and not triplet.truncated for triplet in triplets)
    assert meta.counts["equal"] == meta.counts["stop"] == len(triplets)
    pairs = get_dataset(encoder.template, run.model, run.data, run.training, "rm", encoder.tokenizer)["train_dataset"]
    for triplet, pair in zip(triplets, pairs, strict=True):
        assert pair["chosen_input_ids"] == [*triplet.prompt_ids, *triplet.target_ids]
        assert pair["rejected_input_ids"] == [*triplet.prompt_ids, *triplet.generated_ids]


@pytest.mark.parametrize("form", FORMATS)
def test_a_response_at_the_limit_has_no_end_of_turn(templated: Any, form: str) -> None:
    project, run, encoder = templated
    job = make_job(project, run, encoder, form)
    run_job(job, lambda: TargetEngine(job.prompts, encoder.stop_token_ids(), limit=1))
    triplets, rows = load(run, encoder, "d0")
    check_alike(encoder, job.prompts, triplets, rows)
    assert [triplet.generated_ids.tolist() for triplet in triplets] == [
        prompt.target_ids[:1].tolist() for prompt in job.prompts.prompts
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_a_real_model_is_conditioned_on_the_tokens_that_are_trained_on(
    templated: Any, form: str, tiny_model: Path
) -> None:
    project, run, encoder = templated
    job = make_job(project, run, encoder, form)
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    assert len(encoder.tokenizer) == model.config.vocab_size  # the template added no token
    stop_token_ids = encoder.stop_token_ids(range(150, 250))  # as a checkpoint's own config may name others
    engine = RecordingEngine(model, job.settings, stop_token_ids, encoder.tokenizer.pad_token_id, 2000)
    run_job(job, lambda: engine)
    triplets, rows = load(run, encoder, "d0")
    assert engine.asked == {triplet.id: triplet.prompt_ids.tolist() for triplet in triplets}
    check_alike(encoder, job.prompts, triplets, rows)
    assert "stop" in {row.finish_reason for row in rows}
    rows = [Row(triplet.prompt_ids, [triplet.generated_ids]) for triplet in triplets]
    batch = lay_out(rows, pad_token_id=encoder.tokenizer.pad_token_id)
    trained = batch["response_tokens"].split(batch["response_counts"].tolist())
    for triplet, ids, response in zip(triplets, batch["input_ids"], trained, strict=True):
        assert ids[: len(triplet.prompt_ids)].tolist() == engine.asked[triplet.id]
        assert response.tolist() == triplet.generated_ids.tolist()


def test_the_beginning_of_text_is_written_once(tmp_path: Path) -> None:
    project = Project(tmp_path, tmp_path / "theta_0")
    run = encoders.parse(project, template="llama3", cutoff_len=CUTOFF)
    encoder = encoders.build_encoder(run)
    for form in FORMATS:
        for prompt in make_job(project, run, encoder, form).prompts.prompts:
            ids = [*prompt.prompt_ids.tolist(), *prompt.target_ids.tolist()]
            assert ids.count(encoder.tokenizer.bos_token_id) == 1
            assert ids[0] == encoder.tokenizer.bos_token_id
