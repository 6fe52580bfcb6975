# SPDX-License-Identifier: Apache-2.0
"""Checks of an iteration that look beyond its settings: what is installed, servers, tokenizer and rows, in seconds."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments.start import Start, is_adapter
from ..data.encoding import cut_response
from ..data.files import read_json
from ..data.local import files_of, read_files
from ..data.opponents import Limits, Triplet, encoding_problems, load_foreign, load_triplets
from ..data.prompts import check_bad_rows, load_prompts
from ..data.rounds import prompts_problems
from ..data.triplets import TripletRow, read_meta
from ..errors import ConfigError, DataError, EnvironmentProblem, Findings
from ..lf.given import is_on, is_true
from ..lf.logs import get_logger
from ..team.members import check_positions, load_encoder


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..arguments.parsed import RunArguments
    from ..data.encoding import TurnEncoder
    from ..data.prompts import Prompt
    from .plan import Plan

GATHERS = "stage3_gather_16bit_weights_on_model_save"
FEW_ROWS = 32


@dataclass(frozen=True)
class Sample:
    """The first rows of a run's data, and how many there are of them."""

    # Of `dataset` where `tpaw_prompts` is not set; else the prompts, each with another one's target in place of what
    # will be generated.
    triplets: list[Triplet]
    total: int | None  # prompts of the whole set; None where that cannot be told
    responses: int  # a prompt, of all rounds together
    players: int  # of the team; 0 for T-SPIN
    scored: int  # log-probs a prompt that are not cached: all of θ_t's, the new round's of each other player
    longest: tuple[int, int]  # tokens of the longest prompt, and of the longest response that can come after it


def check_first_rows(run: RunArguments, plan: Plan) -> None:
    """Check some rows before a round is generated, and log what may go wrong."""
    with Findings() as findings:
        check_data(run, plan, load_encoder(run)[2], FEW_ROWS, findings)
    for warning in findings.warnings + findings.remarks:
        get_logger(__name__).warning_rank0(warning)


def check_data(run: RunArguments, plan: Plan, encoder: TurnEncoder, rows: int, findings: Findings) -> Sample | None:
    """Look at the first rows of a run's prompts, or where it generates none at all triplets of its datasets.

    Refused are rows that training would refuse, and whose tokens do not come back as they were generated from; and a
    model that is not causal. Returned is None where no row can be used.
    """
    from ..team.shortcuts import check_causal

    args, cutoff = plan.tpaw_args, run.data.cutoff_len
    check_causal(run.model, findings)
    findings.warnings += encoder.template_warnings(str(run.data.template), str(run.model.model_name_or_path))
    check_positions(run, Path(plan.players[-1].base), findings)
    finished = [(round_, read_meta(round_.path)) for round_ in plan.opponents.rounds if round_.complete]
    triplets = []
    if args.tpaw_prompts:
        found = load_prompts(encoder, run.model, run.data, run.training, args, first=rows)
        prompts, looked = list(found.prompts), len(found.prompts) + len(found.bad_rows)
        what = f"`tpaw_prompts: {args.tpaw_prompts}` ({found.entry.path or 'on the hub'}, first {looked} rows)"
        if args.tpaw_max_prompts is None:  # which rows it chooses is not looked at here
            with findings.note():
                check_bad_rows(what, found.entry, found.bad_rows, args.tpaw_max_bad_rows)
        if not prompts:
            findings.refuse(DataError, [] if findings.errors else [f"{what} has no usable row. Correct the rows."])
            return None
        findings.refuse(ConfigError, round_trip_problems(prompts[:FEW_ROWS], encoder, str(run.data.template)))
        lengths, most = found.prompts.target_tokens, int(plan.given.get("max_new_tokens", 1024))
        is_cut = bool(np.mean(lengths > np.minimum(cutoff - found.prompts.prompt_tokens, most)) > 1 / 2)
        findings.warnings += is_cut * [
            f"{what} has targets of {np.median(lengths):.0f} tokens in the median, but under `max_new_tokens: {most}` "
            f"and `cutoff_len: {cutoff}` most responses would be cut before that. Raise the two."
        ]
        bounds = [run.data.max_samples, args.tpaw_max_prompts, looked if looked < rows else None]
        if looked == rows and found.entry.path is not None:
            bounds.append(len(read_files(files_of(found.entry.path), run.model.cache_dir)))
        total = finished[0][1].prompts if finished else min(filter(None, bounds), default=None)
        for prompt, other in zip(prompts, [*prompts[1:], *prompts[:1]], strict=True):
            target, generated = (cut_response(p.target_ids, len(prompt.prompt_ids), cutoff) for p in (prompt, other))
            triplets.append(Triplet(prompt.id, args.tpaw_iteration, prompt.prompt_ids, target, generated, False))
    else:
        limits = Limits(cutoff, args.tpaw_min_response, args.tpaw_max_bad_rows)
        for round_, meta in finished:
            triplets += load_triplets(round_.entry, meta, encoder, limits)
        for entry in plan.opponents.foreign:
            triplets += load_foreign(entry, encoder, limits, run.model, run.data, run.training)
        if not triplets:
            raise DataError(f"`dataset` has no usable row under `cutoff_len: {cutoff}`. Give other data.")
        total = min(len({triplet.id for triplet in triplets}), run.data.max_samples or len(triplets))
    prompt = max(len(triplet.prompt_ids) for triplet in triplets)
    response = max(len(ids) for triplet in triplets for ids in triplet.responses)
    if plan.to_generate:
        response = max(response, int(plan.given.get("max_new_tokens", 1024)))
    longest = prompt, max(min(response, cutoff - prompt), 1)
    own, samples = args.tpaw_samples_per_prompt, {round_.iteration: meta.samples for round_, meta in finished}
    responses = sum(samples.get(each.iteration, own) for each in plan.opponents.rounds) + len(plan.opponents.foreign)
    players = min(len(plan.players), args.rounds_played) if args.tpaw_objective != "tspin" else 0
    cached = players and args.tpaw_reference == "cached"
    scored = 1 + responses + (players - 1) * own if cached else 0
    return Sample(triplets, total, responses, players, scored, longest)


def check_rounds(plan: Plan, encoder: TurnEncoder, template: str, findings: Findings) -> None:
    """Hold the rounds that are there to one another and to the run's tokenizer and template, by their metas."""
    metas = [(round_, read_meta(round_.path)) for round_ in plan.opponents.rounds if round_.complete]
    findings.refuse(DataError, prompts_problems(metas))
    if plan.tpaw_args.tpaw_prompts:
        files = [(round_.path, meta) for round_, meta in metas]
        findings.refuse(DataError, encoding_problems(files, encoder, template))


def round_trip_problems(prompts: Sequence[Prompt], encoder: TurnEncoder, template: str) -> list[str]:
    """Send prompts through a triplet file's row and back: a message a kind of problem, with the first that has it."""
    found: dict[str, str] = {}
    stops = encoder.stop_token_ids()
    for number, prompt in enumerate(prompts, start=1):
        what, target_ids = f"`template: {template}`: prompt {number} ({prompt.id})", prompt.target_ids.tolist()
        ends = range(len(target_ids) - len(encoder.end_of_turn), len(target_ids))
        stop = next((index for index in ends if target_ids[index] in stops), len(target_ids) - 1)
        sampled = target_ids[: stop + 1]
        row = TripletRow.of(prompt, 0, encoder.text_of(sampled, "stop"), "stop", sampled)
        read = TripletRow.from_json(json.loads(row.to_json()), "the round trip")
        encoded = encoder.encode(read.messages, read.target, read.system, read.tools)
        if not all(map(np.array_equal, encoded, (prompt.prompt_ids, prompt.target_ids))):
            found.setdefault(
                "read",
                f"{what} is written to a triplet file and read back as other tokens, so it would be trained on with "
                "another prompt than it was generated from. Choose a template that does not change messages.",
            )
        finished = encoder.finish(read.generated_ids, read.finish_reason)
        if not np.array_equal(finished, prompt.target_ids):
            found.setdefault(
                "end",
                f"{what} has a target whose last tokens are {target_ids[-4:]}, but if the model samples it and stops, "
                f"{finished.tolist()[-4:]} is trained on. Use the template of the model, so that both end alike.",
            )
    return list(found.values())


def check_engine(plan: Plan, findings: Findings) -> None:
    """Say whether the engine can answer, where there is something to generate: what is installed, and servers."""
    args, start = plan.tpaw_args, Start.of(plan.given)
    if not plan.to_generate or args.tpaw_engine == "hf":
        return
    from ..generation.server import api_key, examine, load_openai, names_of

    load_openai()
    if args.tpaw_engine == "vllm":
        from ..generation.vllm import find_program, served_rank

        if not args.tpaw_opponent_model and all(map(is_adapter, start.adapters)):
            served_rank([Path(adapter) for adapter in start.adapters])
        program = find_program(args.tpaw_vllm_command)
        findings.remarks.append(f"`tpaw_engine: vllm` starts {shlex.join(program)} serve.")
        return
    key, names = api_key(), names_of(args.tpaw_engine_model, args.tpaw_opponent_model or start.path)
    for url in args.tpaw_engine_url or []:
        with findings.note():
            served = asyncio.run(examine(url, names, key, args))
            findings.remarks.append(f"{served.url} answers: {served.title}, serving {served.model}.")


def refuse_engine(given: Mapping[str, Any]) -> None:
    """Refuse DeepSpeed, FSDP and lm-eval where they cannot work, before an hour of generation is spent."""
    import torch

    problems = [
        f"`{key}` is set with `use_cpu`, where accelerate leaves it out. Remove one of the two."
        for key in ("deepspeed", "fsdp")
        if given.get(key) and is_true(given, "use_cpu")
    ]
    if config := given.get("deepspeed"):
        if importlib.util.find_spec("deepspeed") is None:
            raise EnvironmentProblem(
                "`deepspeed` is set, but DeepSpeed is not installed here. Run `pip install 'deepspeed>=0.19.8'`."
            )
        started = is_on("FORCE_TORCHRUN") or is_on("USE_RAY") or "LOCAL_RANK" in os.environ
        if not started and torch.cuda.device_count() <= 1:
            problems.append(
                "`deepspeed` is set, but LlamaFactory would not start torchrun, which DeepSpeed needs. Put "
                "FORCE_TORCHRUN=1 before the command, or switch it off on the command line (`deepspeed=null`)."
            )
        inline = isinstance(config, Mapping)
        config, where = (config, "the config of `deepspeed`") if inline else (read_json(str(config)), config)
        if zero_stage(config) == 3 and not config["zero_optimization"].get(GATHERS) and is_true(given, "do_train"):
            problems.append(
                f"{where} asks for ZeRO-3 without `{GATHERS}: true`, so theta_{{t+1}} would not be saved as a model. "
                "Set it under `zero_optimization`."
            )
    if given.get("tpaw_eval_tasks") and importlib.util.find_spec("lm_eval") is None:
        raise EnvironmentProblem(
            "`tpaw_eval_tasks` is set, but lm-eval is not installed here. Run `pip install 'llamafactory-tpaw[eval]'`."
        )
    if problems:
        raise ConfigError(problems)


def zero_stage(config: Mapping[str, Any]) -> int:
    """Stage of ZeRO that a DeepSpeed config asks for; 0 for none."""
    return int((config.get("zero_optimization") or {}).get("stage", 0))
