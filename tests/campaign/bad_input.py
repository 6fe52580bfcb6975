# SPDX-License-Identifier: Apache-2.0
"""Made-up keys, run files, rows, entries, answers and records: each is taken, or refused in plain words."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import datasets
import hypothesis
import numpy as np
import yaml
from hypothesis import strategies as st

from llamafactory_tpaw.arguments import fields, parsed, recorded
from llamafactory_tpaw.data import prompts, triplets
from llamafactory_tpaw.errors import Findings, TpawError
from llamafactory_tpaw.generation import base, protocol
from llamafactory_tpaw.hook.dispatch import read_if_ours
from llamafactory_tpaw.lf import failures, given
from llamafactory_tpaw.report import collect, lineage, verify
from llamafactory_tpaw.runs import checks, estimates, guard, loop, plan
from llamafactory_tpaw.team import checkpoint, members
from llamafactory_tpaw.train.setup import load_setup
from tests.gate import values
from tests.unit.generation.test_protocol import TOKENIZER

from .ledger import Outcome


# Examples are tried by parts, between which what `datasets` caches is removed.
PART, HANG_S, GONE = 250, 60, object()
INFO, TRIPLETS, RUN = Path("data/dataset_info.json"), Path("data/tpaw/play_iter1.jsonl"), Path("run.yaml")
OUTPUT, OUTPUT_1 = Path("saves/play_iter0"), Path("saves/play_iter1")
LF_KEYS = """temperature top_p top_k max_new_tokens repetition_penalty do_sample seed cutoff_len template dataset
eval_dataset dataset_dir model_name_or_path adapter_name_or_path create_new_adapter output_dir do_train do_eval
max_samples val_size finetuning_type quantization_bit deepspeed overwrite_output_dir learning_rate save_steps use_cpu
num_train_epochs per_device_train_batch_size freeze_trainable_layers cache_dir max_steps lora_target""".split()
YAML_LINES = """a: &a [*a]|b: *a|<<: {stage: dpo}|stage: tpaw|c: !!python/object/apply:os.system [exit]|? [1, 2]|1: 2
|d: 2026-01-01|tpaw_eta: ${seed}|tpaw_gamma: ${oc.env:NO}|output_dir: |tpaw_players: [{a: b}]|---|seed: !!binary aGk
|- x|tpaw_eta: ???|e: '${'|%YAML 9""".split("|")
COLUMNS = {
    "alpaca": {"columns": {"prompt": "question", "response": "answer", "system": "system", "history": "history"}},
    "sharegpt": {"formatting": "sharegpt", "columns": {"messages": "turns", "system": "system", "tools": "tools"}},
}

texts = st.text(st.characters(), max_size=20)
odd = [2**31, 2**64, -1, 10**400, 1e308, float("nan"), float("inf"), "", "0", "1e999", "é\u202e\x00\x1b[2J", "..", "/"]
odd += ["${seed}", "\ud83d", "a" * 70_000, "1" * 5_000, "saves/play_iter0", "play_iter0,play_iter1", "a+b", "~"]
odd_ones = st.integers(0, len(odd) - 1).map(lambda number: odd[number])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | odd_ones
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
edits = st.lists(st.tuples(st.integers(0, 999), anything | st.just(GONE)), min_size=1, max_size=3)


def some(**values_of: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=values_of)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container in a JSON value with each of its keys."""
    for key in [*value] if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def edited(content: str, changes: list[tuple[int, Any]]) -> bytes:
    """JSON lines of which some parts are others or gone."""
    rows = [json.loads(line) for line in content.splitlines()]
    for number, value in changes:
        if found := list(places(rows)):
            box, key = found[number % len(found)]
            box[key] = value
            if value is GONE:
                del box[key]
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def spoiled(content: bytes) -> st.SearchStrategy[bytes]:
    """A file of which some bytes are others, or the end is gone."""
    place = st.integers(0, len(content) - 1)
    spots = st.lists(st.tuples(place, st.binary(max_size=2)), min_size=1, max_size=3)
    made = spots.map(lambda each: functools.reduce(lambda x, y: x[: y[0]] + y[1] + x[y[0] + 1 :], each, content))
    return made | place.map(lambda end: content[:end])


def lines_of(row: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """JSON lines, a JSON array, or neither."""
    rows = st.lists(row, max_size=3)
    lines = rows.map(lambda made: "\n".join(map(json.dumps, made)).encode())
    return lines | lines | rows.map(lambda made: json.dumps(made).encode()) | st.binary(max_size=40)


def like(path: Path) -> st.SearchStrategy[bytes]:
    """What may be in the place of a JSON file, or of one with a JSON object in each line."""
    text = path.read_text() if path.suffix == ".jsonl" else json.dumps(json.loads(path.read_text()))
    made = edits.map(functools.partial(edited, text))
    return made | made | made | anything.map(lambda value: json.dumps(value).encode()) | spoiled(path.read_bytes())


def listing() -> set[tuple[Path, int]]:
    files = [path for path in Path().rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {(path, path.stat().st_mtime_ns) for path in files if not {"cache", ".tpaw_cache"} & {*path.parts}}


def put(path: Path, reads: Sequence[Callable[[], object]], content: bytes) -> None:
    """Let some read a file with another content, and put the old one back; each may refuse it in plain words."""
    old = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    before = listing()
    try:
        for read in reads:
            problems = ["taken"]
            try:
                with failures.explained({}):
                    read()
            except TpawError as error:
                problems = error.problems or [""]
            assert all(problem.strip() for problem in problems), "refused without a word"
        assert not listing() - before, "something was written"
    finally:
        path.unlink()
        if old is not None:
            path.write_bytes(old)


def read_plan(settings: dict[str, Any]) -> None:
    made = plan.make_plan(settings)
    if not made.is_finished:
        checks.refuse_engine(settings)
        with Findings() as findings, given.handed_file(settings, planned=True) as file:
            assert read_if_ours([file]) is not None
            estimates.check_disk(made, None, findings)
        guard.guard(made, lambda text: None)
        json.dumps(recorded.recorded_settings(settings), allow_nan=False)


def read_run_file() -> None:
    if settings := read_if_ours([str(RUN), "output_dir=saves/new"]):
        read_plan(settings)
    loop.read_items([str(RUN)], [])


def read_lineage() -> None:
    assert list(verify.verify(lineage.trace([Path("saves"), TRIPLETS])))


def read_report() -> None:
    [part.series("loss") for method in collect.collect([Path("saves")]) for part in method.parts]


def read_answer(example: tuple[str, str, Any]) -> None:
    """Read what a server may say: a response, a failure, or a ValueError, after which it is asked again."""
    kind, way, answer = example
    plain = SimpleNamespace(temperature=1.0, top_k=0, repetition_penalty=1.0)
    encoder = SimpleNamespace(end_of_turn=(7,), tokenizer=TOKENIZER)
    with contextlib.suppress(ValueError):
        request = base.Request("a-0", np.asarray([1, 2], dtype=np.int32), 4, 0)
        protocol.Dialect(kind, "t", plain, encoder, (7, 8), way, counts=True).read(answer, request)


def make_targets() -> dict[str, tuple[int, st.SearchStrategy[Any], Callable[[Any], object]]]:
    """What is tried in the working folder, which holds a run: its share of all tries, examples, who reads one."""
    entries = {name: {"file_name": f"{name}.json"} | COLUMNS[name] for name in COLUMNS}
    INFO.write_text(json.dumps(json.loads(INFO.read_text()) | entries))
    settings = [yaml.safe_load(Path(f"iter{t}.yaml").read_text()) for t in range(3)]
    run, new = parsed.parse_single_process(settings[1]), settings[1] | {"output_dir": "saves/new"}
    encoder = members.load_encoder(run)[2]
    plans = [functools.partial(read_plan, each) for each in settings]

    def rows_of(name: str) -> None:
        tpaw = SimpleNamespace(**{**vars(run.finetuning), "tpaw_prompts": name, "tpaw_max_bad_rows": 1})
        list(prompts.load_prompts(encoder, run.model, run.data, run.training, tpaw).prompts)

    lines = Path("iter1.yaml").read_text().splitlines()
    added = st.lists(st.sampled_from([*lines, *YAML_LINES]) | texts, max_size=8)
    run_files = added.map(lambda made: "\n".join([*lines, *made]).encode(errors="surrogatepass"))
    keys = st.sampled_from([*fields.FIELDS, *LF_KEYS]) | st.text(max_size=8).map("tpaw_{}".format)
    row = some(question=texts, answer=texts) | some(question=anything, answer=anything, history=anything)
    role = st.sampled_from(["human", "gpt", "system", "observation", "function_call", "x"]) | anything
    turn = st.builds(lambda role, value: {"from": role, "value": value}, role, texts | anything) | some(value=texts)
    chat = some(turns=st.lists(turn, max_size=4) | anything, system=anything, tools=anything)
    ids, reason = st.lists(st.integers(-1, 9) | scalars, max_size=5), st.sampled_from(["stop", "length", "error"])
    rest = dict.fromkeys(("text", "stop_reason", "prompt_token_ids", "message"), anything)
    choice = some(finish_reason=reason | anything, token_ids=ids | anything, **rest)
    usage = some(prompt_tokens=anything, completion_tokens=anything) | anything
    answers = some(choices=st.lists(choice, min_size=1, max_size=2), usage=usage) | anything
    ways = st.sampled_from([protocol.VLLM, protocol.OTHER]), st.sampled_from([protocol.IDS, protocol.MESSAGES])
    setup, resume = functools.partial(load_setup, run), functools.partial(checkpoint.find_resume_point, OUTPUT_1)
    files: dict[Path, tuple[int, st.SearchStrategy[bytes] | None, list[Callable[[], object]]]] = {
        RUN: (5, run_files | spoiled("\n".join(lines).encode()) | st.binary(max_size=40), [read_run_file]),
        INFO: (2, None, [functools.partial(rows_of, "additions"), *plans, setup]),
        Path("data/alpaca.json"): (3, lines_of(row), [functools.partial(rows_of, "alpaca")]),
        Path("data/sharegpt.json"): (3, lines_of(chat), [functools.partial(rows_of, "sharegpt")]),
        triplets.meta_path(TRIPLETS): (2, None, [plans[1], setup, read_lineage]),
        OUTPUT / "tpaw.json": (2, None, [plans[1], setup, read_lineage, read_report]),
        OUTPUT / "trainer_state.json": (1, None, [plans[1], read_report]),
        OUTPUT / "config.json": (1, None, [plans[1], setup]),
        OUTPUT_1 / "checkpoint-6/trainer_state.json": (1, None, [resume]),
    }
    some_keys = st.dictionaries(keys, anything, min_size=1, max_size=4)
    found = {
        str(path): (n, like(path) if made is None else made, functools.partial(put, path, to))
        for path, (n, made, to) in files.items()
    }
    return found | {
        "keys": (10, some_keys, lambda made: put(Path("none"), [lambda: read_plan(new | made)], b"")),
        "server answers": (10, st.tuples(*ways, answers), read_answer),
    }


def hung(number: int, frame: Any) -> None:
    raise AssertionError(f"nothing came of it within {HANG_S} s")


def attack(examples: st.SearchStrategy[Any], read: Callable[[Any], object], count: int, seed: object) -> int:
    """Try so many examples, always the same ones without a seed; raise what went wrong; return how many there were."""
    tried = [0]

    def one(example: Any) -> None:
        tried[0] += 1
        signal.alarm(HANG_S)
        try:
            read(example)
        finally:
            signal.alarm(0)

    options = {"max_examples": count, "database": None, "deadline": None, "derandomize": seed is None}
    options |= {"suppress_health_check": list(hypothesis.HealthCheck), "phases": [hypothesis.Phase.generate]}
    test = hypothesis.settings(**options)(hypothesis.given(examples)(one))
    signal.signal(signal.SIGALRM, hung)
    (test if seed is None else hypothesis.seed(seed)(test))()
    return tried[0]


def run(count: int, seed: int | None, folder: Path) -> Outcome:
    """Try each target by its share of `count` examples, some at a time."""
    outcome, cache = Outcome(), folder / "cache"
    values.unpack(folder)
    datasets.disable_progress_bars()
    logging.disable(logging.CRITICAL)
    with contextlib.chdir(folder), mock.patch("datasets.config.HF_DATASETS_CACHE", cache):
        targets = make_targets()
        for name, (share, examples, read) in targets.items():
            left = -(-count * share // sum(share for share, *_ in targets.values()))
            for part in range(0, left, PART):
                try:
                    own = None if seed is None else f"{seed} {part}"
                    outcome.tried[name] += attack(examples, read, min(PART, left - part), own)
                except Exception as error:
                    notes = " ".join(getattr(error, "__notes__", ()))
                    outcome.failures.append(f"{name} (--seed {seed}, part {part}): {error!r} {notes}"[:2000])
                shutil.rmtree(cache, ignore_errors=True)
    logging.disable(logging.NOTSET)
    return outcome
