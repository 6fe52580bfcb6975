# SPDX-License-Identifier: Apache-2.0
"""Generation of a round by θ_t in this process."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from ..data.opponents import encoding_problems
from ..data.prompts import load_prompts, selection
from ..data.rounds import list_opponents, origin_problems, prompts_problems, split_names
from ..data.triplets import read_meta
from ..errors import DataError, EnvironmentProblem, Findings
from ..plugin import facade
from ..plugin.logs import get_logger
from ..team.forward import autocast_dtype
from ..team.machine import hardware
from ..team.members import Member, Team, load_team
from .base import SamplingSettings, ignore
from .hf import HfEngine
from .workflow import Job, run_job


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..arguments.parsed import RunArguments
    from ..data.encoding import TurnEncoder
    from ..data.prompts import PromptSet
    from ..data.rounds import Round
    from ..data.triplets import TripletMeta
    from .base import Request, Response

logger = get_logger(__name__)


class _OutOfMemoryAdvice(HfEngine):
    """The engine, with a message that names the key to turn."""

    def generate(self, requests: Sequence[Request], finished: Callable[[int], object] = ignore) -> list[Response]:
        try:
            return super().generate(requests, finished)
        except torch.OutOfMemoryError as error:
            raise EnvironmentProblem(
                f"The device ran out of memory with `tpaw_generate_batch_tokens: {self.batch_tokens}`. Lower it and "
                "start again: finished rows are kept."
            ) from error


def generate_round(run: RunArguments, round_: Round) -> TripletMeta:
    r"""Sample D_t from θ_t with the `hf` engine and write its files.

    Args:
        run: The run's arguments, parsed for one process.
        round_: The round whose file is missing or half done.

    Raises:
        TpawError: If the team, the prompts or a half-done file do not fit, before the model is loaded; or if
            sampling fails.
    """
    with Findings() as findings:
        team = load_team(run, findings)
        with findings.note():
            prompts = load_prompts(team.encoder, run.model, run.data, run.training, run.finetuning)
            _check_earlier_rounds(run, round_, team, prompts)
    policy, encoder = team.policy, team.encoder
    settings = SamplingSettings.of({**vars(run.generating), "seed": run.training.seed})
    dtype = _compute_dtype(run)
    job = Job(
        round=round_,
        prompts=prompts,
        selection=selection({**vars(run.data), **vars(run.finetuning)}),
        encoder=encoder,
        generator=policy.fingerprint,
        generator_path=policy.player.path,
        settings=settings,
        engine={"name": HfEngine.name, "version": HfEngine.version, "dtype": str(dtype).removeprefix("torch.")},
        cutoff_len=run.data.cutoff_len,
        template_name=str(run.data.template),
        hardware=hardware(run.training.device),
    )
    meta = run_job(job, lambda: _load_engine(run, policy, encoder, settings, dtype))
    logger.info_rank0(
        f"{round_.path}: {meta.rows} triplets of {policy.player.name}, {meta.counts['stop']} ended, "
        f"{meta.counts['length']} ran into the limit, {meta.counts['equal']} equal their target."
    )
    return meta


def _compute_dtype(run: RunArguments) -> torch.dtype:
    """What the run trains in. The file's dtype says nothing: LlamaFactory saves bf16 training in float32."""
    if run.finetuning.pure_bf16:
        return torch.bfloat16
    return autocast_dtype(run.training) or torch.float32


def _check_earlier_rounds(run: RunArguments, round_: Round, team: Team, prompts: PromptSet) -> None:
    """Find before sampling what training would refuse afterwards: rounds of other checkpoints or prompts."""
    rounds = list_opponents(run.finetuning, split_names(run.data.dataset), run.data.dataset_dir).rounds
    metas = [(other, read_meta(other.path)) for other in rounds if other.iteration != round_.iteration]
    digests = {other.entry.name: (meta.prompts_digest, meta.rows) for other, meta in metas}
    problems = prompts_problems(digests | {round_.entry.name: (prompts.digest, len(prompts.prompts))})
    players = {member.player.theta: (member.player.path, member.fingerprint) for member in team.members}
    problems += origin_problems(metas, players)
    problems += encoding_problems([(other.path, meta) for other, meta in metas], team.encoder, str(run.data.template))
    if problems:
        raise DataError(problems)


def _load_engine(
    run: RunArguments, policy: Member, encoder: TurnEncoder, settings: SamplingSettings, dtype: torch.dtype
) -> HfEngine:
    model_args = copy.copy(run.model)
    model_args.model_name_or_path = str(policy.folder)
    model = facade.load_model(encoder.tokenizer, model_args, run.finetuning, False)
    model = model.to(device=run.training.device, dtype=dtype)
    stop_token_ids = encoder.stop_token_ids(model.generation_config.eos_token_id)
    batch_tokens = run.finetuning.tpaw_generate_batch_tokens
    return _OutOfMemoryAdvice(model, settings, stop_token_ids, encoder.tokenizer.pad_token_id, batch_tokens)
