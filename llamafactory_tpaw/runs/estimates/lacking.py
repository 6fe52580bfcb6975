# SPDX-License-Identifier: Apache-2.0
"""What the players still have to score: a sample of the sequences, looked up in their caches by content."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...data.encoding import cut_response
from ...data.opponents import Limits, load_triplets
from ...data.triplets import read_meta
from ...errors import DataError
from ...team.cache import sequence_key
from ...team.checkpoint import weight_paths
from ...team.fingerprint import kept_fingerprint, with_adapter
from ...team.manifest import read_manifest
from ...team.members import Member
from ...team.players import team_of
from ...team.scorer import TeamScorer
from .workload import samples_of_rounds


if TYPE_CHECKING:
    from ...arguments.parsed import RunArguments
    from ...data.encoding import TurnEncoder
    from ...team.players import Player
    from ..preflight import Plan
    from .workload import Sample


class Lacking(NamedTuple):
    r"""What the caches lack.

    Attributes:
        per_prompt: Sequences a prompt, of all players together.
        players: Players that have something to score.
        unread: Bytes of weights whose fingerprint is not kept, so that they are read first.
    """

    per_prompt: float
    players: int
    unread: int


def count_lacking(run: RunArguments, plan: Plan, encoder: TurnEncoder, sample: Sample, rows: int) -> Lacking:
    r"""Look a sample of the sequences up in the caches of the players.

    A response that is yet to be generated is lacking. So is everything of a player whose fingerprint nobody knows.

    Args:
        run: The run's arguments.
        plan: Its players and datasets.
        encoder: Tokenizer and template.
        sample: Gives targets where no round is there yet.
        rows: How many rows of each round are looked at.

    Raises:
        TpawError: If a round or a cache cannot be read.
    """
    args = plan.tpaw_args
    team = team_of(plan.players, args.tpaw_team_size)
    blocks, samples, unknown = _blocks(plan, encoder, sample, run.data.cutoff_len, rows)
    store, known = Path(args.tpaw_cache_dir), _recorded(plan.players)
    scorer = TeamScorer(run, encoder.tokenizer)
    per_prompt, players, unread = 0.0, 0, 0
    for player in team:
        parts = [Path(part) for part in player.parts] if player.is_local else []
        kept = [kept_fingerprint(part, store) for part in parts]
        unread += sum(_weight_bytes(part) for part, found in zip(parts, kept, strict=True) if not found)
        whole = list(itertools.accumulate(kept, with_adapter))[-1] if parts and all(kept) else None
        fingerprint = whole or known.get(player.name)
        shares = [1.0] * len(blocks)
        if fingerprint and player.is_local:
            cache = scorer.cache_of(Member(player, parts[0], fingerprint, tuple(parts[1:])))
            shares = [len(cache.missing(keys)) / len(keys) for keys in blocks]
        lacks = sum(share * count for share, count in zip(shares, samples, strict=True)) + unknown
        per_prompt += lacks
        players += lacks > 0
    return Lacking(per_prompt, players, unread)


def _blocks(
    plan: Plan, encoder: TurnEncoder, sample: Sample, cutoff_len: int, rows: int
) -> tuple[list[list[bytes]], list[int], int]:
    """Keys of targets and of each round that is there, how many a prompt has, and how many responses are not there."""
    asked = samples_of_rounds(plan)
    if sample.triplets:
        by_round: dict[int, list[Any]] = {}
        for triplet in sample.triplets:
            by_round.setdefault(triplet.iteration, []).append(triplet)
        rounds = list(by_round.values())
        prompts = len({triplet.id for triplet in sample.triplets})
        samples = [max(round(len(part) / prompts), 1) for part in rounds]
    else:
        limits = Limits(cutoff_len, plan.tpaw_args.tpaw_min_response, rows)
        there = [(round_, read_meta(round_.path)) for round_ in plan.opponents.rounds if round_.complete]
        rounds = [load_triplets(round_.entry, meta, encoder, limits, first=rows) for round_, meta in there]
        samples = [meta.samples for _, meta in there]
    generated = [[sequence_key(triplet.prompt_ids, triplet.generated_ids) for triplet in part] for part in rounds]
    if rounds:
        targets = [sequence_key(triplet.prompt_ids, triplet.target_ids) for triplet in rounds[0]]
    else:
        targets = [
            sequence_key(prompt.prompt_ids, cut_response(prompt.target_ids, len(prompt.prompt_ids), cutoff_len))
            for prompt in sample.prompts
        ]
    blocks = [(keys, count) for keys, count in zip((targets, *generated), (1, *samples), strict=True) if keys]
    return [keys for keys, _ in blocks], [count for _, count in blocks], max(sum(asked) - sum(samples), 0)


def _recorded(players: list[Player]) -> dict[str, str]:
    """Fingerprints that the newest player's `tpaw.json` names: its own and those of the players before it."""
    newest = players[-1]
    try:
        manifest = read_manifest(Path(newest.path)) if newest.is_local else None
    except DataError:
        return {}
    if manifest is None:
        return {}
    known = {player["name"]: player["fingerprint"] for player in (*manifest.players, manifest.policy)}
    return known | ({manifest.result["name"]: manifest.result["fingerprint"]} if manifest.result else {})


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_paths(folder))
