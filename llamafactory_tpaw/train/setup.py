# SPDX-License-Identifier: Apache-2.0
"""Everything an iteration needs before a model is loaded: tokenizer, team and triplets, each checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.encoding import TurnEncoder
from ..data.opponents import (
    FOREIGN,
    Limits,
    Triplet,
    encoding_problems,
    first_prompts,
    is_exact,
    load_foreign,
    load_triplets,
    split_by_prompt,
    with_proto,
)
from ..data.rounds import (
    Opponents,
    Round,
    list_opponents,
    opponent_problems,
    origin_problems,
    prompts_problems,
    round_problems,
    split_names,
)
from ..data.source import Entry, find_entry, is_triplet_file
from ..data.token_store import TokenStore
from ..data.triplets import TripletMeta, opponent_place, read_meta
from ..errors import ConfigError, DataError, Findings
from ..lf.logs import get_logger
from ..team.manifest import MANIFEST, read_manifest
from ..team.members import Member, Team, load_team, opponent_fingerprint
from ..team.scorer import Block


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..arguments.parsed import RunArguments

logger = get_logger(__name__)


@dataclass
class Source:
    """A dataset that was read, for `tpaw.json`: responses a prompt, how many failed, who generated it if not θ."""

    entry: str
    iteration: int
    rows: int
    digest: str = ""
    generator: str = ""
    samples: int = 1
    failed: int = 0
    opponent: str = ""


@dataclass
class IterationSetup:
    """What `load_setup` found.

    Attributes:
        tokenizer: Adapted to the template by LlamaFactory.
        processor: The model's processor, or None.
        encoder: Tokenizer and template.
        policy: θ_t with its fingerprint.
        team: The players, oldest first; empty for T-SPIN.
        train: Triplets to train on.
        held_out: Triplets that `val_size` holds out, or those of `eval_dataset`.
        eval_sets: Triplets of `eval_dataset` by entry, with `eval_on_each_dataset`.
        sources: The datasets.
    """

    tokenizer: Any
    processor: Any
    encoder: TurnEncoder
    policy: Member
    team: list[Member]
    train: list[Triplet]
    held_out: list[Triplet]
    eval_sets: dict[str, list[Triplet]] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)

    def blocks(self) -> list[Block]:
        """All targets, and for each θ the responses it generated: what every player scores."""
        triplets = [*self.train, *self.held_out, *(triplet for part in self.eval_sets.values() for triplet in part)]
        blocks = [
            Block("target", [triplet.prompt_ids for triplet in triplets], [triplet.target_ids for triplet in triplets])
        ]
        for iteration in sorted({triplet.iteration for triplet in triplets}):
            part = [triplet for triplet in triplets if triplet.iteration == iteration]
            name = "generated elsewhere" if iteration == FOREIGN else f"generated {iteration}"
            blocks.append(
                Block(name, [triplet.prompt_ids for triplet in part], [triplet.generated_ids for triplet in part])
            )
        return blocks


def load_setup(run: RunArguments) -> IterationSetup:
    r"""Load and check all that an iteration needs but the models.

    Raises:
        TpawError: If anything is missing or does not fit.
    """
    opponents = list_opponents(run.finetuning, split_names(run.data.dataset), run.data.dataset_dir)
    with Findings() as findings:
        team = load_team(run, findings)
        reader = _TripletReader(run, team, findings)
        triplets = reader.read(opponents)
    if opponents.ignored:
        logger.info_rank0(
            f"Ignored, beyond the team's {len(opponents.rounds)} rounds: {', '.join(opponents.ignored)}."
        )
    if not run.finetuning.tpaw_prompts:
        triplets = first_prompts(triplets, run.data.max_samples)
    train, held_out = split_by_prompt(triplets, run.data.val_size)
    if not run.training.do_train:
        train = []
    eval_sets = reader.read_eval(split_names(run.data.eval_dataset), train)
    if not run.data.eval_on_each_dataset:
        held_out += [triplet for part in eval_sets.values() for triplet in part]
        eval_sets = {}
    return IterationSetup(
        team.tokenizer,
        team.processor,
        team.encoder,
        team.policy,
        team.members,
        train,
        held_out,
        eval_sets,
        reader.sources,
    )


class _TripletReader:
    """Reads the datasets of an iteration, each checked against what generated it."""

    def __init__(self, run: RunArguments, team: Team, findings: Findings) -> None:
        self.run = run
        self.encoder = team.encoder
        self.members = {member.player.theta: member for member in team.readers}
        self.findings = findings
        self.limits = Limits(run.data.cutoff_len, run.finetuning.tpaw_min_response, run.finetuning.tpaw_max_bad_rows)
        self.store = TokenStore(Path(run.finetuning.tpaw_cache_dir) / "tokens")
        self.sources: list[Source] = []

    def read(self, opponents: Opponents) -> list[Triplet]:
        """Read all rounds and other ranking data, with y_0 where the objective needs it."""
        used = [*opponents.rounds, *([opponents.proto] if opponents.proto else [])]
        problems = [problem for round_ in used for problem in round_problems(round_, may_be_generated=False)]
        if problems:
            raise DataError(problems)
        metas = [(round_, read_meta(round_.path)) for round_ in used]
        with self.findings.note():
            self._check_origins(metas, opponents)
        self.findings.raise_noted()
        parts: list[list[Triplet]] = []
        foreign: list[Triplet] = []
        for round_, meta in metas:
            with self.findings.note():
                parts.append(self._round(round_, meta))
        for entry in opponents.foreign:
            with self.findings.note():
                foreign += self._foreign(entry)
        self.findings.raise_noted()
        triplets = [triplet for part in parts[: len(opponents.rounds)] for triplet in part] + foreign
        if opponents.proto is None:
            return triplets
        name, failed = opponents.proto.entry.name, metas[-1][1].failed
        triplets, dropped = with_proto(triplets, parts[-1], name, failed)
        if dropped:
            logger.warning_rank0(
                f"`tpaw_proto: {name}` has no response to {dropped} prompts, because generation failed: their "
                "triplets are left out."
            )
        return triplets

    def read_eval(self, names: Sequence[str], train: Sequence[Triplet]) -> dict[str, list[Triplet]]:
        """Read `eval_dataset`; its prompts must not be trained on."""
        if names and any(triplet.proto_ids is not None for triplet in train):
            raise ConfigError(
                "`eval_dataset` has no y_0 to compare with, which `tpaw_objective: tspin` needs from iteration 1 on. "
                "Use `val_size` to hold out prompts of `dataset`."
            )
        trained = {triplet.prompt_ids.tobytes() for triplet in train} if names else set()
        sets = {}
        for name in names:
            entry = find_entry(name, self.run.data.dataset_dir)
            if entry.path is not None and is_triplet_file(entry.path):
                triplets = load_triplets(entry, read_meta(entry.path), self.encoder, self.limits, self.store)
            else:
                triplets = self._foreign(entry, is_opponent=False)
            shared = sum(triplet.prompt_ids.tobytes() in trained for triplet in triplets)
            if shared:
                raise DataError(
                    f"`eval_dataset: {name}` shares {shared} of its {len(triplets)} rows' prompts with `dataset`, so "
                    "they are not held out. Use `val_size`, which keeps all triplets of a prompt on one side, or "
                    "another set."
                )
            sets[name] = triplets
        return sets

    def _round(self, round_: Round, meta: TripletMeta) -> list[Triplet]:
        if not is_exact(meta, self.encoder):
            logger.warning_rank0(
                f"{round_.path} was generated with another tokenizer or template: its {meta.rows} responses are "
                "encoded from their texts."
            )
        if meta.failed:
            logger.warning_rank0(
                f"{round_.path} lacks {len(meta.failed)} of {meta.prompts * meta.samples} responses, which failed and "
                "were allowed to (`tpaw_max_failed`): there is no triplet of them."
            )
        if meta.opponent:
            logger.warning_rank0(
                f"{round_.path} was generated by the opponent {opponent_place(round_.path, meta)}, not by "
                f"theta_{round_.iteration}."
            )
        self.sources.append(
            Source(
                round_.entry.name,
                round_.iteration,
                meta.rows,
                meta.rows_digest,
                meta.generator,
                meta.samples,
                len(meta.failed),
                opponent_place(round_.path, meta),
            )
        )
        return load_triplets(round_.entry, meta, self.encoder, self.limits, self.store)

    def _check_origins(self, metas: Sequence[tuple[Round, TripletMeta]], opponents: Opponents) -> None:
        """Hold the rounds to the players, prompts, tokenizer and template of this run, all of them at once."""
        players = {theta: (member.player.path, member.fingerprint) for theta, member in self.members.items()}
        rounds = metas[: len(opponents.rounds)]
        problems = prompts_problems(
            {round_.entry.name: (meta.prompts_digest, meta.prompts) for round_, meta in rounds}
        )
        problems += origin_problems(rounds, players)
        problems += self._opponent_problems(rounds)
        if self.run.finetuning.tpaw_prompts:  # without, the triplets are only borrowed
            files = [(round_.path, meta) for round_, meta in metas]
            problems += encoding_problems(files, self.encoder, str(self.run.data.template))
        if opponents.proto is not None:
            problems += self._proto_problems(*metas[-1])
        if problems:
            raise DataError(problems)

    def _opponent_problems(self, rounds: Sequence[tuple[Round, TripletMeta]]) -> list[str]:
        """The round of this iteration is of whom the run names."""
        args = self.run.finetuning
        store = Path(args.tpaw_cache_dir)
        return [
            problem
            for round_, meta in rounds
            if round_.iteration == args.tpaw_iteration
            for problem in opponent_problems(
                round_, meta, args.tpaw_opponent_model, opponent_fingerprint(args.tpaw_opponent_model, store)
            )
        ]

    def _proto_problems(self, round_: Round, meta: TripletMeta) -> list[str]:
        """y_0 is what θ_0 of this run generated: the iteration before trained on the same file."""
        newest = self.members[max(self.members)]
        manifest = read_manifest(newest.folder)
        if manifest is None or meta.rows_digest in {source["digest"] for source in manifest.triplets}:
            return []
        return [
            f"`tpaw_proto: {round_.entry.name}` ({round_.path}) is not what {newest.player.name} "
            f"({newest.player.path}) was trained on: its {MANIFEST} does not list the file. Name the triplets of "
            "iteration 0 of this run."
        ]

    def _foreign(self, entry: Entry, *, is_opponent: bool = True) -> list[Triplet]:
        logger.info_rank0(f"`{entry.name}` is ranking data of another source: no lineage is checked.")
        run = self.run
        triplets = load_foreign(entry, self.encoder, self.limits, run.model, run.data, run.training, self.store)
        if is_opponent:
            self.sources.append(Source(entry.name, FOREIGN, len(triplets)))
        return triplets


def describe_template(run: RunArguments, encoder: TurnEncoder) -> dict[str, str]:
    """Name and digest of the template, for `tpaw.json`."""
    return {"name": str(run.data.template), "digest": encoder.template_digest}
