# SPDX-License-Identifier: Apache-2.0
"""Generation of a round by θ_t or the model in its place: what is asked, of whom, and by which engine."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from ..arguments.parsed import RunArguments
from ..data.files import digest_json, read_json
from ..data.opponents import encoding_problems
from ..data.prompts import PromptSet, load_prompts, selection
from ..data.rounds import Round, list_opponents, origin_problems, prompts_problems, split_names
from ..data.triplets import SERVED, TripletMeta, read_meta
from ..errors import DataError, Findings
from ..lf.logs import get_logger
from ..team.loading import load_generator
from ..team.manifest import hardware
from ..team.members import Team, load_encoder, load_opponent, load_team
from ..team.sharding import compute_dtype
from ..team.shortcuts import find_shortcuts
from .base import Engine, EngineContext, SamplingSettings
from .devices import DeviceEngine
from .hf import HfEngine
from .workflow import Job, run_job


logger = get_logger(__name__)


def generate_round(run: RunArguments, round_: Round, devices: Sequence[str] = ()) -> TripletMeta:
    r"""Sample D_t, whose file is missing or half done, from θ_t or the model in its place, and write its files.

    The run's arguments are parsed for one process; `devices` are those in sight, as `CUDA_VISIBLE_DEVICES` names them.
    """
    job, context = _prepare(run, round_, devices)
    meta = run_job(job, lambda: _make_engine(job, context))
    mostly_cut = meta.counts["length"] > meta.rows / 2
    (logger.warning_rank0 if mostly_cut else logger.info_rank0)(
        f"{round_.path}: {meta.rows} triplets of {context.name}, {meta.counts['stop']} ended, "
        f"{meta.counts['length']} ran into the limit, {meta.counts['equal']} equal their target."
        + " Raise `max_new_tokens` or `cutoff_len`, or see whether the template is the model's."
        * mostly_cut
    )
    if meta.failed:
        logger.warning_rank0(
            f"{round_.path} lacks {len(meta.failed)} responses that could not be had (`tpaw_max_failed: "
            f"{job.max_failed}`). {job.failed_path} says why."
        )
    return meta


def _prepare(run: RunArguments, round_: Round, devices: Sequence[str]) -> tuple[Job, EngineContext]:
    """Settle what is generated and by whom, without loading a model."""
    args = run.finetuning
    with Findings() as findings:
        team = load_team(run, findings)
        with findings.note():
            prompts = load_prompts(team.encoder, run.model, run.data, run.training, args)
            _check_earlier_rounds(run, round_, team, prompts)
        opponent = load_opponent(run, team.policy, team.encoder)
    named = str(args.tpaw_opponent_model or "")
    generator = opponent or team.policy
    served = bool(named) and opponent is None
    dtype = str(compute_dtype(run)).removeprefix("torch.")
    context = EngineContext(
        run=run,
        name=named or generator.player.name,
        model=named if served else generator.folder,
        encoder=team.encoder,
        settings=SamplingSettings.of({**vars(run.generating), "seed": run.training.seed}),
        dtype=dtype,
        stop_token_ids=tuple(team.encoder.stop_token_ids(None if served else _eos_of(generator.folder))),
        devices=tuple(devices),
        opponent=named,
        adapters=() if served else generator.adapters,
    )
    hf = args.tpaw_engine == HfEngine.name
    job = Job(
        round=round_,
        prompts=prompts,
        selection=selection({**vars(run.data), **vars(args)}),
        encoder=team.encoder,
        generator=SERVED + digest_json({"name": named}) if served else generator.fingerprint,
        generator_path=named or generator.player.path,
        settings=context.settings,
        engine={
            "name": args.tpaw_engine,
            "version": HfEngine.version if hf else "",
            "dtype": "not known" if args.tpaw_engine == "openai" else dtype,
        },
        cutoff_len=run.data.cutoff_len,
        template_name=str(run.data.template),
        hardware=hardware(run.training.device, max(len(devices), 1)),
        samples=args.tpaw_samples_per_prompt,
        opponent=named,
        max_failed=args.tpaw_max_failed,
    )
    return job, context


def _make_engine(job: Job, context: EngineContext) -> Engine:
    args = context.run.finetuning
    if args.tpaw_engine != HfEngine.name:
        from .client import make_engine

        return make_engine(context, job.round.path)
    if len(context.devices) < 2:
        return _load_engine(context)
    # Each process loads its tokenizer: the code of one that a checkpoint brings along cannot be sent.
    load = functools.partial(_load_engine, replace(context, encoder=None))
    return DeviceEngine(HfEngine.version, load, context.devices, args.tpaw_generate_batch_tokens)


def _eos_of(folder: Path) -> int | list[int] | None:
    """The end-of-sequence ids of a checkpoint, as transformers finds them for generation."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            config = read_json(path)
            return config.get("eos_token_id", (config.get("text_config") or {}).get("eos_token_id"))
    return None


def _check_earlier_rounds(run: RunArguments, round_: Round, team: Team, prompts: PromptSet) -> None:
    """Find before sampling what training would refuse afterwards: rounds of other checkpoints or prompts."""
    rounds = list_opponents(run.finetuning, split_names(run.data.dataset), run.data.dataset_dir).rounds
    metas = [(other, read_meta(other.path)) for other in rounds if other.iteration != round_.iteration]
    own = SimpleNamespace(prompts_digest=prompts.digest, prompts=len(prompts.prompts), cutoff_len=run.data.cutoff_len)
    own.prompts_entry, own.selection = prompts.entry.name, selection(vars(run.data) | vars(run.finetuning))
    problems = prompts_problems([*metas, (round_, own)])
    players = {member.player.theta: (member.player.path, member.fingerprint) for member in team.members}
    problems += origin_problems(metas, players)
    problems += encoding_problems([(other.path, meta) for other, meta in metas], team.encoder, str(run.data.template))
    if problems:
        raise DataError(problems)


def _load_engine(context: EngineContext) -> HfEngine:
    tokenizer = context.encoder.tokenizer if context.encoder else load_encoder(context.run)[0]
    model = load_generator(context.run, tokenizer, Path(context.model), context.adapters)
    if not context.opponent:  # what training would refuse after an hour of sampling
        find_shortcuts(model, context.run.training, context.run.finetuning)
    batch_tokens = context.run.finetuning.tpaw_generate_batch_tokens
    return HfEngine(model, context.settings, context.stop_token_ids, tokenizer.pad_token_id, batch_tokens)
