# SPDX-License-Identifier: Apache-2.0
"""Everything an iteration needs before a model is loaded: tokenizer, team and triplets, each checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..data.encoding import TurnEncoder
from ..data.opponents import (
    FOREIGN,
    Limits,
    Triplet,
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
    origin_problems,
    prompts_problems,
    round_problems,
    split_names,
)
from ..data.source import Entry, find_entry, is_triplet_file
from ..data.triplets import TripletMeta, read_meta
from ..errors import ConfigError, DataError
from ..plugin.logs import get_logger
from ..team.manifest import MANIFEST, read_manifest
from ..team.members import Member, check_tokenizers, load_encoder, load_members
from ..team.scorer import Block


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..arguments.parsed import RunArguments

logger = get_logger(__name__)


@dataclass
class Source:
    """A dataset that was read, for `tpaw.json`."""

    entry: str
    iteration: int
    rows: int
    digest: str = ""
    generator: str = ""


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
    members, policy = load_members(run)
    tokenizer, processor, encoder = load_encoder(run)
    check_tokenizers(members or [policy], run, encoder)
    reader = _TripletReader(run, encoder, members or [policy])
    opponents = list_opponents(run.finetuning, split_names(run.data.dataset), run.data.dataset_dir)
    if opponents.ignored:
        logger.info_rank0(
            f"Ignored, beyond the team's {len(opponents.rounds)} rounds: {', '.join(opponents.ignored)}."
        )
    triplets = reader.read(opponents)
    if not run.finetuning.tpaw_prompts:
        triplets = first_prompts(triplets, run.data.max_samples)
    train, held_out = split_by_prompt(triplets, run.data.val_size)
    if not run.training.do_train:
        train = []
    eval_sets = reader.read_eval(split_names(run.data.eval_dataset), train)
    if not run.data.eval_on_each_dataset:
        held_out += [triplet for part in eval_sets.values() for triplet in part]
        eval_sets = {}
    return IterationSetup(tokenizer, processor, encoder, policy, members, train, held_out, eval_sets, reader.sources)


class _TripletReader:
    """Reads the datasets of an iteration, each checked against what generated it."""

    def __init__(self, run: RunArguments, encoder: TurnEncoder, members: Sequence[Member]) -> None:
        self.run = run
        self.encoder = encoder
        self.members = {member.player.theta: member for member in members}
        self.limits = Limits(run.data.cutoff_len, run.finetuning.tpaw_min_response, run.finetuning.tpaw_max_bad_rows)
        self.sources: list[Source] = []

    def read(self, opponents: Opponents) -> list[Triplet]:
        """Read all rounds and other ranking data, with y_0 where the objective needs it."""
        problems = [
            problem
            for round_ in [*opponents.rounds, *([opponents.proto] if opponents.proto else [])]
            for problem in round_problems(round_, may_be_generated=False)
        ]
        if problems:
            raise DataError("\n".join(problems))
        metas = [(round_, read_meta(round_.path)) for round_ in opponents.rounds]
        players = {theta: (member.player.path, member.fingerprint) for theta, member in self.members.items()}
        problems = prompts_problems({round_.entry.name: (meta.prompts_digest, meta.rows) for round_, meta in metas})
        problems += origin_problems(metas, players)
        if problems:
            raise DataError("\n".join(problems))
        triplets = [triplet for round_, meta in metas for triplet in self._round(round_, meta)]
        triplets += [triplet for entry in opponents.foreign for triplet in self._foreign(entry)]
        if opponents.proto is not None:
            meta = read_meta(opponents.proto.path)
            self._check_proto(opponents.proto, meta)
            proto = self._round(opponents.proto, meta)
            triplets = with_proto(triplets, proto, opponents.proto.entry.name)
        return triplets

    def read_eval(self, names: Sequence[str], train: Sequence[Triplet]) -> dict[str, list[Triplet]]:
        """Read `eval_dataset`; its prompts must not be trained on."""
        if names and any(triplet.proto_ids is not None for triplet in train):
            raise ConfigError(
                "`eval_dataset` has no y_0 to compare with, which `tpaw_objective: tspin` needs from iteration 1 on. "
                "Use `val_size` to hold out prompts of `dataset`."
            )
        trained = {triplet.prompt_ids.tobytes() for triplet in train}
        sets = {}
        for name in names:
            entry = find_entry(name, self.run.data.dataset_dir)
            if entry.path is not None and is_triplet_file(entry.path):
                triplets = load_triplets(entry, read_meta(entry.path), self.encoder, self.limits)
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
        self._check_encoding(round_, meta)
        self.sources.append(Source(round_.entry.name, round_.iteration, meta.rows, meta.rows_digest, meta.generator))
        return load_triplets(round_.entry, meta, self.encoder, self.limits)

    def _check_encoding(self, round_: Round, meta: TripletMeta) -> None:
        """The prompts generated from are those trained on, unless the triplets are only borrowed."""
        if is_exact(meta, self.encoder):
            return
        what = "tokenizer" if meta.tokenizer != self.encoder.tokenizer_digest else "template"
        if self.run.finetuning.tpaw_prompts:
            raise DataError(
                f"{round_.path} was generated with another {what} than this run's (`template: "
                f"{self.run.data.template}`, with `default_system`, `enable_thinking` and the like), so other tokens "
                "would be trained on than were sampled. Restore the setting, or delete the file and its meta file to "
                "sample anew."
            )
        logger.warning_rank0(
            f"{round_.path} was generated with another {what}: its {meta.rows} responses are encoded from their texts."
        )

    def _check_proto(self, round_: Round, meta: TripletMeta) -> None:
        """y_0 is what θ_0 of this run generated: the iteration before trained on the same file."""
        newest = self.members[max(self.members)]
        manifest = read_manifest(newest.folder)
        if manifest is None or meta.rows_digest in {source["digest"] for source in manifest.triplets}:
            return
        raise DataError(
            f"`tpaw_proto: {round_.entry.name}` ({round_.path}) is not what {newest.player.name} "
            f"({newest.player.path}) was trained on: its {MANIFEST} does not list the file. Name the triplets of "
            "iteration 0 of this run."
        )

    def _foreign(self, entry: Entry, *, is_opponent: bool = True) -> list[Triplet]:
        logger.info_rank0(f"`{entry.name}` is ranking data of another source: no lineage is checked.")
        run = self.run
        triplets = load_foreign(entry, self.encoder, self.limits, run.model, run.data, run.training)
        if is_opponent:
            self.sources.append(Source(entry.name, FOREIGN, len(triplets)))
        return triplets


def describe_template(run: RunArguments, encoder: TurnEncoder) -> dict[str, str]:
    """Name and digest of the template, for `tpaw.json`."""
    return {"name": str(run.data.template), "digest": encoder.template_digest}
