# SPDX-License-Identifier: Apache-2.0
"""Everything an iteration needs before a model is loaded: tokenizer, team and triplets, each checked."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data import opponents, rounds
from ..data.files import digest_file
from ..data.opponents import FOREIGN, Triplet
from ..data.rounds import Opponents, split_names
from ..data.source import Entry, find_entry, is_triplet_file
from ..data.triplets import TripletMeta, generator_place, meta_path, read_meta
from ..data.weights import weigh
from ..errors import ConfigError, DataError, Findings
from ..lf.logs import get_logger
from ..team.manifest import MANIFEST, read_manifest, relative_path
from ..team.members import Team, load_config, load_team
from ..team.scorer import Block


if TYPE_CHECKING:
    from ..arguments.parsed import RunArguments

logger = get_logger(__name__)


class IterationSetup(NamedTuple):
    """What `load_setup` found."""

    team: Team
    train: list[Triplet]
    held_out: list[Triplet]  # by `val_size`, and those of `eval_dataset`
    sources: list[dict[str, Any]]  # the datasets, as `tpaw.json` describes them
    generated: TripletMeta | None  # of the round that this iteration generated
    left_out: int = 0  # triplets, by `tpaw_prompt_weight` and `tpaw_opponent_filter`

    def blocks(self) -> list[Block]:
        """All targets, and for each θ the responses it generated: what every player scores."""
        triplets = [*self.train, *self.held_out]
        blocks = [Block("target", [(each.prompt_ids, each.target_ids) for each in triplets])]
        for iteration in sorted({triplet.iteration for triplet in triplets}):
            pairs = [(each.prompt_ids, each.generated_ids) for each in triplets if each.iteration == iteration]
            name = "generated elsewhere" if iteration == FOREIGN else f"generated {iteration}"
            blocks.append(Block(name, pairs))
        return blocks


def load_setup(run: RunArguments) -> IterationSetup:
    """Load and check all that an iteration needs but the models."""
    listed = rounds.list_opponents(run.finetuning, split_names(run.data.dataset), run.data.dataset_dir)
    if listed.ignored:
        logger.info_rank0(f"Ignored, beyond the team's {len(listed.rounds)} rounds: {', '.join(listed.ignored)}.")
    parts, sources = [], []
    with Findings() as findings:
        team = load_team(run, findings)
        metas = _checked_metas(run, team, listed, findings)
        for entry, meta in [*metas, *((entry, None) for entry in listed.foreign)]:
            with findings.note():
                parts.append(_read(run, team, entry, meta))
                sources.append(_describe(run, entry, meta, len(parts[-1])))
    proto = parts.pop(len(listed.rounds)) if listed.proto else None
    triplets = [triplet for part in parts for triplet in part]
    if proto is not None:
        entry, meta = metas[-1]
        triplets, dropped = opponents.with_proto(triplets, proto, entry.name, meta.failed)
        if dropped:
            logger.warning_rank0(
                f"`tpaw_proto: {entry.name}` has no response to {dropped} prompts, because generation failed: their "
                "triplets are left out."
            )
    own = metas[len(listed.rounds) - 1][1] if run.finetuning.tpaw_prompts and listed.rounds else None
    if not run.finetuning.tpaw_prompts:
        triplets = opponents.first_prompts(triplets, run.data.max_samples)
    train, held_out = opponents.split_by_prompt(triplets, run.data.val_size)
    kept = train = train if run.training.do_train else []
    if run.finetuning.tpaw_prompt_weight == "entropy":
        decode = functools.partial(team.tokenizer.decode, skip_special_tokens=True)
        kept = weigh(train, decode, run.finetuning.tpaw_answer_pattern)
    if run.finetuning.tpaw_opponent_filter:
        kept = opponents.without(kept, run.finetuning.tpaw_opponent_filter)
    held_out += _read_eval(run, team, train)
    return IterationSetup(team, kept, held_out, sources, own, len(train) - len(kept))


def _checked_metas(
    run: RunArguments, team: Team, listed: Opponents, findings: Findings
) -> list[tuple[Entry, TripletMeta]]:
    """Hold the rounds, y_0's the last, to the players, prompts, tokenizer and template of this run, all at once."""
    findings.raise_noted()  # rounds of a team that is wrong do not fit for that reason alone
    metas = [(round_, read_meta(round_.path)) for round_ in listed.used]
    played = metas[: len(listed.rounds)]
    problems = rounds.prompts_problems(played)
    players = {member.player.theta: (member.player.path, member.fingerprint) for member in team.readers}
    problems += rounds.origin_problems(played, players)
    if run.finetuning.tpaw_prompts:  # without, the triplets are only borrowed
        files = [(round_.path, meta) for round_, meta in metas]
        problems += opponents.encoding_problems(files, team.encoder, str(run.data.template))
    if listed.proto is not None:
        # y_0 is what θ_0 of this run generated: the iteration before trained on the same file.
        newest, (round_, meta) = team.readers[-1], metas[-1]
        manifest = read_manifest(newest.folder)
        if manifest is not None and meta.rows_digest not in {source["digest"] for source in manifest.triplets}:
            problems.append(
                f"`tpaw_proto: {round_.entry.name}` ({round_.path}) is not what {newest.player.name} "
                f"({newest.player.path}) was trained on: its {MANIFEST} does not list the file. Name the triplets of "
                "iteration 0 of this run."
            )
    findings.refuse(DataError, problems)
    findings.raise_noted()
    return [(round_.entry, meta) for round_, meta in metas]


def _read(run: RunArguments, team: Team, entry: Entry, meta: TripletMeta | None) -> list[Triplet]:
    """Read triplets with their meta and say what is unusual about them, or read any other ranking data."""
    # Of the two the model's own may be padded, or be made larger for new tokens.
    vocabulary = max(load_config(run.model).vocab_size, len(team.tokenizer))
    args = run.finetuning
    limits = opponents.Limits(run.data.cutoff_len, args.tpaw_min_response, args.tpaw_max_bad_rows, vocabulary)
    folder = Path(run.finetuning.tpaw_cache_dir) / "tokens"
    if meta is None:
        logger.info_rank0(f"`{entry.name}` is ranking data of another source: no lineage is checked.")
        return opponents.load_foreign(entry, team.encoder, limits, run.model, run.data, run.training, folder)
    notes = []
    if not opponents.is_exact(meta, team.encoder):
        notes.append("was generated with another tokenizer or template: its responses are encoded from their texts")
    if meta.failed:
        notes.append(f"lacks {len(meta.failed)} responses, which failed and were allowed to (`tpaw_max_failed`)")
    if meta.opponent:
        place = generator_place(entry.path, meta)
        notes.append(f"was generated by the opponent {place}, not by theta_{meta.iteration}")
    for note in notes:
        logger.warning_rank0(f"{entry.path} {note}.")
    return opponents.load_triplets(entry, meta, team.encoder, limits, folder)


def _read_eval(run: RunArguments, team: Team, train: list[Triplet]) -> list[Triplet]:
    """Read `eval_dataset`; its prompts must not be trained on."""
    names = split_names(run.data.eval_dataset)
    if names and any(triplet.proto_ids is not None for triplet in train):
        raise ConfigError(
            "`eval_dataset` has no y_0 to compare with, which `tpaw_objective: tspin` needs from iteration 1 on. "
            "Use `val_size` to hold out prompts of `dataset`."
        )
    trained = {triplet.prompt_ids.tobytes() for triplet in train} if names else set()
    triplets = []
    for name in names:
        entry = find_entry(name, run.data.dataset_dir)
        is_own = entry.path is not None and is_triplet_file(entry.path)
        part = _read(run, team, entry, read_meta(entry.path) if is_own else None)
        shared = sum(triplet.prompt_ids.tobytes() in trained for triplet in part)
        if shared:
            raise DataError(
                f"`eval_dataset: {name}` shares {shared} of its {len(part)} rows' prompts with `dataset`, so they are "
                "not held out. Use `val_size`, which keeps all triplets of a prompt on one side, or another set."
            )
        triplets += part
    return triplets


def _describe(run: RunArguments, entry: Entry, meta: TripletMeta | None, triplets: int) -> dict[str, Any]:
    """Describe a dataset for `tpaw.json`: what it holds, who generated it, and where it is."""
    described = {"entry": entry.name, "iteration": FOREIGN, "rows": triplets, "digest": "", "generator": ""}
    described |= {"samples": 1, "failed": 0, "opponent": "", "foreign": meta is None}
    if entry.path is not None:
        described["path"] = relative_path(entry.path, run.training.output_dir)
    if meta is None:
        is_file = entry.path is not None and entry.path.is_file()
        return described | ({"digest": digest_file(entry.path)} if is_file else {})
    opponent = generator_place(entry.path, meta) if meta.opponent else ""
    return described | {
        "iteration": meta.iteration,
        "rows": meta.rows,
        "digest": meta.rows_digest,
        "generator": meta.generator,
        "samples": meta.samples,
        "failed": len(meta.failed),
        "opponent": opponent and relative_path(opponent, run.training.output_dir),
        "meta": digest_file(meta_path(entry.path)),
    }
