# SPDX-License-Identifier: Apache-2.0
"""Checks of an iteration that look beyond its settings: what is installed, servers, tokenizer and rows, in seconds."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments.start import Start, is_adapter
from ..data.files import read_json
from ..data.opponents import encoding_problems
from ..data.prompts import check_bad_rows
from ..data.rounds import prompts_problems
from ..data.triplets import TripletRow, read_meta
from ..errors import ConfigError, DataError, EnvironmentProblem, Findings
from ..lf.given import is_on, is_true
from ..team.members import load_encoder
from .estimates import check_disk, take_sample, zero_stage


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..arguments.parsed import RunArguments
    from ..data.encoding import TurnEncoder
    from ..data.prompts import Prompt
    from .estimates import Sample
    from .plan import Plan

GATHERS = "stage3_gather_16bit_weights_on_model_save"
FEW_ROWS = 32


def check_start(plan: Plan) -> None:
    """Check at the start of `train` that what it saves fits on the disk."""
    with Findings() as findings:
        check_disk(plan, None, findings)


def check_first_rows(run: RunArguments, plan: Plan) -> None:
    """Check some rows before a round is generated."""
    with Findings() as findings:
        encoder = load_encoder(run)[2]
        check_sample(take_sample(run, plan, encoder, FEW_ROWS), plan, encoder, str(run.data.template), findings)


def check_sample(sample: Sample, plan: Plan, encoder: TurnEncoder, template: str, findings: Findings) -> None:
    """Refuse rows that training would refuse, and rows whose tokens do not come back as they were generated from."""
    args = plan.tpaw_args
    what = f"`tpaw_prompts: {args.tpaw_prompts}` ({sample.source})"
    if args.tpaw_max_prompts is None:  # which rows it chooses is not looked at here
        with findings.note():
            check_bad_rows(what, sample.bad_rows, args.tpaw_max_bad_rows)
    findings.refuse(ConfigError, round_trip_problems(sample.prompts[:FEW_ROWS], encoder, template))
    if args.tpaw_prompts and not sample.prompts and not findings.errors:
        findings.refuse(DataError, [f"{what} has no usable row. Correct the rows."])


def check_rounds(plan: Plan, encoder: TurnEncoder, template: str, findings: Findings) -> None:
    """Hold the rounds that are there to one another and to the run's tokenizer and template, by their metas."""
    metas = [(round_, read_meta(round_.path)) for round_ in plan.opponents.rounds if round_.complete]
    findings.refuse(
        DataError,
        prompts_problems({round_.entry.name: (meta.prompts_digest, meta.prompts) for round_, meta in metas}),
    )
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
    if importlib.util.find_spec("openai") is None:
        raise EnvironmentProblem(
            f"`tpaw_engine: {args.tpaw_engine}` asks servers through the package openai, which is not installed. Run: "
            'pip install "llamafactory-tpaw[openai]"'
        )
    if args.tpaw_engine == "vllm":
        from ..generation.vllm import find_program, served_adapter, split_arguments

        if not args.tpaw_opponent_model and all(map(is_adapter, start.adapters)):
            served_adapter([Path(adapter) for adapter in start.adapters])
        program = find_program(args.tpaw_vllm_command)
        split_arguments(args.tpaw_vllm_args)
        findings.remarks.append(f"`tpaw_engine: vllm` starts {shlex.join(program)} serve.")
        return
    from ..generation.served import api_key, examine, names_of

    key, names = api_key(), names_of(args.tpaw_engine_model, args.tpaw_opponent_model or start.path)
    for url in args.tpaw_engine_url or []:
        with findings.note():
            served = examine(url, names, key)
            findings.remarks.append(f"{served.url} answers: {served.title}, serving {served.model}.")


def refuse_engine(given: Mapping[str, Any]) -> None:
    """Refuse DeepSpeed and FSDP where they cannot work, before an hour of generation is spent."""
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
        config, where = (config, "the config of `deepspeed`") if inline else (read_json(Path(config)), config)
        if zero_stage(config) == 3 and not config["zero_optimization"].get(GATHERS) and is_true(given, "do_train"):
            problems.append(
                f"{where} asks for ZeRO-3 without `{GATHERS}: true`, so theta_{{t+1}} would not be saved as a model. "
                "Set it under `zero_optimization`."
            )
    if problems:
        raise ConfigError(problems)
