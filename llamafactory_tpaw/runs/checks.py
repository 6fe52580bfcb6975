# SPDX-License-Identifier: Apache-2.0
"""Checks of an iteration that look beyond its settings: what is installed, servers, tokenizer and rows, in seconds."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from packaging.version import Version

from ..arguments.parsed import RunArguments, parse_reading
from ..arguments.start import Start, is_adapter
from ..data.files import read_json
from ..data.opponents import encoding_problems
from ..data.rounds import prompts_problems
from ..data.source import find_entry
from ..data.triplets import TripletRow, read_meta
from ..errors import ConfigError, DataError, EnvironmentProblem, Findings, TpawError
from ..lf.given import is_on, is_true
from ..lf.logs import get_logger
from ..team.members import load_encoder
from .estimates import check_disk, zero_stage
from .sample import take_sample


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..data.encoding import TurnEncoder
    from ..data.prompts import Prompt
    from .plan import Plan
    from .sample import Sample

# Of those before, 0.18.4 was seen to load corrupted weights under ZeRO-3 over gloo.
DEEPSPEED = "0.19.8"
INSTALL = f"`pip install 'deepspeed>={DEEPSPEED}'`"
GATHERS = "stage3_gather_16bit_weights_on_model_save"
# Rows that are looked at before training starts; a larger set is not opened, since generation reads it whole next.
FEW_ROWS, QUICK_BYTES = 8, 64 << 20
ROUND_TRIPS = 32


def check_start(plan: Plan) -> None:
    r"""Do at the start of `train` what costs a few seconds: the round trip of some rows, and disk.

    Warnings are logged.

    Raises:
        TpawError: With every problem found.
    """
    with Findings() as findings, findings.note():
        model_args, data_args = parse_reading(plan.given)
        sample = None
        named = plan.tpaw_args.tpaw_prompts
        path = find_entry(named, data_args.dataset_dir).path if named else None
        if path is not None and path.is_file() and path.stat().st_size <= QUICK_BYTES:
            # Stands in for the training arguments, whose parsing would occupy the device.
            alone = SimpleNamespace(local_process_index=0, seed=0, dataloader_num_workers=0)
            encoder = load_encoder(RunArguments(model_args, data_args, alone, plan.tpaw_args, None))[2]
            sample = take_sample(plan, encoder, model_args, data_args, alone, FEW_ROWS)
            check_sample(sample, plan, encoder, data_args.template, findings)
        check_disk(plan, sample, findings)
        for warning in findings.warnings:
            get_logger(__name__).warning_rank0(warning)


def check_sample(sample: Sample, plan: Plan, encoder: TurnEncoder, template: str, findings: Findings) -> None:
    """Refuse rows that training would refuse, and rows whose tokens do not come back as they were generated from."""
    args = plan.tpaw_args
    what = f"`tpaw_prompts: {args.tpaw_prompts}`"
    if sample.bad_rows:
        first = sample.bad_rows[0]
        text = (
            f"{what}: {len(sample.bad_rows)} bad among {sample.how}, and `tpaw_max_bad_rows` allows "
            f"{args.tpaw_max_bad_rows}; the first is {sample.path or 'its file'}, row {first.row}: {first.reason}."
        )
        # Which rows `tpaw_max_prompts` chooses is not looked at here.
        if len(sample.bad_rows) <= args.tpaw_max_bad_rows or args.tpaw_max_prompts is not None:
            findings.warnings.append(f"{text} Bad rows are dropped.")
        else:
            findings.refuse(DataError, [f"{text} Correct the rows, or raise `tpaw_max_bad_rows` to drop them."])
    prompts = sample.prompts[:: max(-(-len(sample.prompts) // ROUND_TRIPS), 1)]
    findings.refuse(ConfigError, round_trip_problems(prompts, encoder, template))
    if args.tpaw_prompts and not sample.prompts and not findings.errors:
        findings.refuse(DataError, [f"{what}: no row can be used among {sample.how}. Correct the rows."])


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


# -- the token round trip


def round_trip_problems(prompts: Sequence[Prompt], encoder: TurnEncoder, template: str) -> list[str]:
    r"""Send prompts through a triplet file's row and back, and look at beginnings and ends.

    Args:
        prompts: A few prompts of the run.
        encoder: Tokenizer and template.
        template: The template's name, for messages.

    Returns:
        One message a kind of problem, each with the first prompt that has it.
    """
    found: dict[str, str] = {}
    for number, prompt in enumerate(prompts, start=1):
        for kind, message in _row_problems(prompt, encoder).items():
            found.setdefault(kind, f"`template: {template}`: prompt {number} ({prompt.id}) {message}")
    return list(found.values())


def _row_problems(prompt: Prompt, encoder: TurnEncoder) -> dict[str, str]:
    problems = {}
    target_ids = prompt.target_ids.tolist()
    stops, begins = encoder.stop_token_ids(), len(target_ids) - len(encoder.end_of_turn)
    stop = next((index for index in range(begins, len(target_ids)) if target_ids[index] in stops), len(target_ids) - 1)
    sampled = target_ids[: stop + 1]
    row = TripletRow.of(prompt, 0, encoder.text_of(sampled, "stop"), "stop", sampled)
    read = TripletRow.from_json(json.loads(row.to_json()), "the round trip")
    encoded = encoder.encode(read.messages, read.target, read.system, read.tools)
    if not all(map(np.array_equal, encoded, (prompt.prompt_ids, prompt.target_ids))):
        problems["read"] = (
            "is written to a triplet file and read back as other tokens, so it would be trained on with another "
            "prompt than it was generated from. Choose a template that does not change messages."
        )
    finished = encoder.finish(read.generated_ids, read.finish_reason)
    if not np.array_equal(finished, prompt.target_ids):
        problems["end"] = (
            f"has a target whose last tokens are {target_ids[-4:]}, but if the model samples it and stops, "
            f"{finished.tolist()[-4:]} is trained on. Use the template of the model, so that both end alike."
        )
    tokenizer = encoder.tokenizer
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and bos != eos and prompt.prompt_ids[:2].tolist() == [bos, bos]:
        problems["bos"] = (
            f"begins with two BOS ({tokenizer.bos_token}): the tokenizer adds one that the template writes, too. Use "
            "the template of the model."
        )
    if target_ids[-2:] == [eos, eos]:
        problems["eos"] = (
            f"has a target that ends with two EOS ({tokenizer.eos_token}). Remove the token from the texts of the "
            "dataset, or use the template of the model."
        )
    return problems


# -- the engine of generation


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

        # One that is not there yet can still be served.
        if not args.tpaw_opponent_model and (len(start.adapters) > 1 or all(map(is_adapter, start.adapters))):
            served_adapter([Path(adapter) for adapter in start.adapters])
        program = find_program(args.tpaw_vllm_command)
        split_arguments(args.tpaw_vllm_args)
        findings.remarks.append(f"`tpaw_engine: vllm` starts {shlex.join(program)} serve.")
        return
    from ..generation.served import api_key, examine, names_of

    key, names = api_key(), names_of(args.tpaw_engine_model, args.tpaw_opponent_model or start.path)

    def look(url: str) -> None:
        try:
            found = examine(url, names, key)
        except TpawError as error:
            findings.errors.append(error)
            return
        alone = "" if found.verified else ", a name that says nothing about its weights"
        findings.remarks.append(f"{found.url} answers: {found.title}, serving {found.model}{alone}.")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(look, args.tpaw_engine_url or []))


# -- DeepSpeed, FSDP and Ray


def refuse_engine(given: Mapping[str, Any]) -> None:
    r"""Refuse DeepSpeed, FSDP and Ray where they cannot work, before an hour of generation is spent.

    Raises:
        TpawError: With every problem found.
    """
    with Findings() as findings:
        if is_on("USE_RAY") and importlib.util.find_spec("ray") is None:
            findings.refuse(
                EnvironmentProblem,
                ["USE_RAY is set, but Ray is not installed here. Run `pip install 'ray[default]'`, or unset USE_RAY."],
            )
        if given.get("deepspeed"):
            if deepspeed_version() is None:
                findings.refuse(
                    EnvironmentProblem, [f"`deepspeed` is set, but DeepSpeed is not installed here. Run {INSTALL}."]
                )
            with findings.note():
                findings.refuse(ConfigError, _deepspeed_problems(given))
        if given.get("fsdp") and is_true(given, "use_cpu"):
            findings.refuse(
                ConfigError,
                [
                    "`fsdp` is set with `use_cpu`, where accelerate leaves FSDP out silently and every process holds "
                    "the whole model. Remove `fsdp`, or train on GPUs."
                ],
            )


def deepspeed_version() -> str | None:
    """The version of DeepSpeed that is installed, None for none."""
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return None


def _deepspeed_problems(given: Mapping[str, Any]) -> list[str]:
    import torch

    problems = []
    started = is_on("FORCE_TORCHRUN") or is_on("USE_RAY") or "LOCAL_RANK" in os.environ
    if not started and torch.cuda.device_count() <= 1:
        problems.append(
            "`deepspeed` is set, but LlamaFactory would not start torchrun, which DeepSpeed needs. Put "
            "FORCE_TORCHRUN=1 before the command, or switch it off on the command line (`deepspeed=null`)."
        )
    inline = isinstance(given["deepspeed"], Mapping)
    where = "the config of `deepspeed`" if inline else str(given["deepspeed"])
    config = given["deepspeed"] if inline else read_json(Path(where))
    if not isinstance(config, Mapping):
        return [
            *problems,
            f"`deepspeed: {where}` must hold a JSON object with DeepSpeed's settings. Correct the file.",
        ]
    stage, installed, trains = zero_stage(config), deepspeed_version(), is_true(given, "do_train")
    if stage == 3 and not config["zero_optimization"].get(GATHERS) and trains:
        problems.append(
            f"{where} asks for ZeRO-3 without `{GATHERS}: true`, so theta_{{t+1}} would not be saved as a model. Set "
            "it under `zero_optimization`."
        )
    if 0 < stage < 3 and not trains:
        problems.append(
            f"{where} asks for ZeRO-{stage}, which DeepSpeed cannot evaluate with unless it trains. Switch it off on "
            "the command line (`deepspeed=null`)."
        )
    if is_true(given, "use_cpu"):
        problems.append(
            "`deepspeed` is set with `use_cpu`, where accelerate leaves DeepSpeed's start out. Remove `use_cpu`; with "
            "DS_ACCELERATOR=cpu and an empty CUDA_VISIBLE_DEVICES, DeepSpeed trains on the CPU."
        )
    if stage == 3 and not torch.cuda.is_available() and installed and Version(installed) < Version(DEEPSPEED):
        problems.append(
            f"DeepSpeed {installed} is installed, but ZeRO-3 on the CPU (gloo) needs {DEEPSPEED} or later: 0.18.4 was "
            f"seen to load corrupted weights there. Run {INSTALL}."
        )
    return problems
