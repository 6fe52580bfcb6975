# SPDX-License-Identifier: Apache-2.0
"""How much an iteration has to do: prompts to answer, sequences to score, batches to train on."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.collator import GroupSampler, TripletDataset
from ...data.opponents import FOREIGN, Limits, Triplet, load_foreign, load_triplets
from ...data.prompts import load_first_prompts
from ...data.source import Entry
from ...data.triplets import TripletMeta, TripletRow, read_meta
from ...errors import DataError


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...data.encoding import TurnEncoder
    from ...data.prompts import BadRow, Prompt, Prompts, PromptSet
    from ..preflight import Plan
    from .lacking import Lacking

BYTES_PER_ID = 7  # up to five digits, a comma and a space
LINE_READ = 1 << 20
TIMED_ROWS = 64


@dataclass(frozen=True)
class Workload:
    r"""What an iteration has to do, from a sample of its data.

    Attributes:
        prompts: Prompts of a round; None where it cannot be told.
        responses: Triplets of a prompt that are trained on: the samples of all rounds.
        players: Players that score; 0 for T-SPIN.
        generates: Whether this iteration's responses are sampled.
        triplets: A sample: `responses` triplets for each prompt looked at, one prompt after another.
        row_bytes: Mean size of a line of the triplet file.
        how: Where the lengths come from.
        encode_seconds: Seconds to encode a row, measured.
        lacking: What the players' caches lack, or None for all.
        samples: Responses a prompt of the round that is generated.
        failed: Responses that rounds lack.
    """

    prompts: int | None
    responses: int
    players: int
    generates: bool
    triplets: list[Triplet]
    row_bytes: float
    how: str
    encode_seconds: float = 0.0
    lacking: Lacking | None = None
    samples: int = 1
    failed: int = 0

    @property
    def train_triplets(self) -> int | None:
        """Triplets of an epoch, held-out ones included."""
        return None if self.prompts is None else self.prompts * self.responses - self.failed

    @property
    def new_rows(self) -> int | None:
        """Responses that are sampled in this iteration."""
        return None if self.prompts is None else self.prompts * self.samples

    @property
    def sampled_prompts(self) -> int:
        """Prompts of the sample."""
        return len({triplet.id for triplet in self.triplets})

    @property
    def scored_sequences(self) -> int | None:
        """Sequences that the players' caches lack."""
        if self.prompts is None:
            return None
        return round(self.prompts * self.scored_per_prompt)

    @property
    def scored_per_prompt(self) -> float:
        """Sequences of a prompt that the caches lack, of all players together."""
        return self.players * (1 + self.responses) if self.lacking is None else self.lacking.per_prompt

    @property
    def scoring_players(self) -> int:
        """Players that have something to score."""
        return self.players if self.lacking is None else self.lacking.players

    def longest(self) -> Triplet:
        """The sampled triplet with the longest row."""
        return max(self.triplets, key=lambda triplet: len(triplet.prompt_ids) + max(map(len, triplet.responses)))


def describe_workload(
    plan: Plan, encoder: TurnEncoder, sample: Sample, reading: Any, lacking: Lacking | None = None
) -> Workload:
    r"""Count what an iteration has to do.

    Args:
        plan: Its settings, players and datasets.
        encoder: Tokenizer and template.
        sample: Rows that were looked at.
        reading: LlamaFactory's data arguments (`cutoff_len`).
        lacking: What the players' caches lack, where that was looked at.
    """
    args = plan.tpaw_args
    samples = samples_of_rounds(plan)
    players = min(len(plan.players), args.tpaw_team_size) if args.tpaw_objective == "tpaw" else 0
    triplets = _sampled_triplets(plan, sample, reading.cutoff_len, samples)
    return Workload(
        prompts=sample.total,
        responses=sum(samples),
        players=players,
        generates=bool(plan.to_generate),
        triplets=triplets,
        row_bytes=_row_bytes(plan, sample, encoder, triplets),
        how=sample.how,
        encode_seconds=_encode_seconds(sample, encoder),
        lacking=lacking if players else None,
        samples=args.tpaw_samples_per_prompt,
        failed=sum(len(read_meta(round_.path).failed) for round_ in plan.opponents.rounds if round_.complete),
    )


def samples_of_rounds(plan: Plan) -> list[int]:
    """Responses a prompt of each round, then of each other ranking set; one that is not there is made as asked."""
    own = plan.tpaw_args.tpaw_samples_per_prompt
    rounds = [read_meta(round_.path).samples if round_.complete else own for round_ in plan.opponents.rounds]
    return [*rounds, *(1 for _ in plan.opponents.foreign)]


def _encode_seconds(sample: Sample, encoder: TurnEncoder) -> float:
    """Time the encoding of a few prompts with their targets; 0 where only triplets were read."""
    prompts = sample.prompts[:TIMED_ROWS]
    begun = time.perf_counter()
    for prompt in prompts:
        encoder.encode(prompt.messages, prompt.target, prompt.system, prompt.tools)
    return (time.perf_counter() - begun) / max(len(prompts), 1)


@dataclass(frozen=True)
class Sample:
    """Rows that were looked at: prompts of the SFT set, or triplets where nothing is generated.

    Attributes:
        prompts: What `tpaw_prompts` gave; empty where it is not set.
        triplets: What `dataset` gave where `tpaw_prompts` is not set.
        bad_rows: Rows that cannot be used, among those looked at.
        total: How many prompts the whole set has; None where that cannot be told.
        how: What was looked at, in words.
        path: The file of the prompts, where it is local.
    """

    prompts: Prompts | list[Prompt]
    triplets: list[Triplet]
    bad_rows: list[BadRow]
    total: int | None
    how: str
    path: Path | None = None


def take_sample(
    plan: Plan, encoder: TurnEncoder, model_args: Any, data_args: Any, training_args: Any, rows: int
) -> Sample:
    r"""Look at the first rows of a run's data.

    Raises:
        TpawError: If the data cannot be read.
    """
    args = plan.tpaw_args
    if args.tpaw_prompts:
        found, read = load_first_prompts(encoder, model_args, data_args, training_args, args, rows)
        total = _total_prompts(plan, found, read, rows, data_args)
        how = f"the first {read} rows of {found.entry.name}"
        return Sample(found.prompts, [], found.bad_rows, total, how, found.entry.path)
    limits = Limits(data_args.cutoff_len, args.tpaw_min_response, args.tpaw_max_bad_rows)
    triplets = [
        triplet
        for round_ in plan.opponents.rounds
        for triplet in load_triplets(round_.entry, read_meta(round_.path), encoder, limits)
    ]
    for entry in plan.opponents.foreign:
        triplets += load_foreign(entry, encoder, limits, model_args, data_args, training_args)
    if not triplets:
        raise DataError(f"`dataset` has no usable row under `cutoff_len: {data_args.cutoff_len}`. Give other data.")
    prompts = len({triplet.id for triplet in triplets})
    total = min(prompts, data_args.max_samples or prompts)
    return Sample([], triplets, [], total, f"all {len(triplets)} triplets of `dataset`")


def _total_prompts(plan: Plan, found: PromptSet, read: int, asked: int, data_args: Any) -> int | None:
    """Number of prompts: of a finished round, of a set that was read whole, or counted in a local file."""
    complete = [round_ for round_ in plan.opponents.rounds if round_.complete]
    if complete:
        return read_meta(complete[0].path).prompts
    most = plan.tpaw_args.tpaw_max_prompts
    total = read if read < asked or data_args.max_samples == read else _count_rows(found.entry)
    if total is None:
        return most
    total = min(total, data_args.max_samples or total, most or total)
    return round(total * (1 - len(found.bad_rows) / max(read, 1)))


def _count_rows(entry: Entry) -> int | None:
    """Count the lines of a local file of JSON lines; other formats are not opened for this."""
    if entry.path is None or not entry.path.is_file() or entry.path.suffix not in (".json", ".jsonl"):
        return None
    with entry.path.open("rb") as stream:
        if stream.read(1) == b"[":
            return None
        stream.seek(0)
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(LINE_READ), b""))


def _sampled_triplets(plan: Plan, sample: Sample, cutoff_len: int, samples: Sequence[int]) -> list[Triplet]:
    """Give each sampled prompt its responses: as long as other prompts' targets, times what rounds showed."""
    if sample.triplets:
        return sample.triplets
    metas = [read_meta(round_.path) for round_ in plan.opponents.rounds if round_.complete]
    targets = [prompt.target_ids for prompt in sample.prompts]
    ratio = _length_ratio(metas, targets)
    most = int(plan.given.get("max_new_tokens", 1024))
    rounds = [(round_, number) for round_, count in enumerate(samples) for number in range(count)]
    triplets = []
    for number, prompt in enumerate(sample.prompts):
        room = cutoff_len - len(prompt.prompt_ids)
        target_ids = prompt.target_ids[:room]
        for response, (round_, sampled) in enumerate(rounds):
            other = targets[(number + 1 + response) % len(targets)]
            length = max(1, min(round(len(other) * ratio), most, room))
            generated = np.resize(other, length)
            triplets.append(
                Triplet(prompt.id, round_, prompt.prompt_ids, target_ids, generated, False, sample=sampled)
            )
    return triplets


def _length_ratio(metas: Sequence[TripletMeta], targets: Sequence[np.ndarray]) -> float:
    generated = sum(meta.counts.get("generated_tokens", 0) for meta in metas)
    rows = sum(meta.rows for meta in metas)
    mean = sum(map(len, targets)) / len(targets)
    return generated / rows / mean if generated and rows else 1.0


def _row_bytes(plan: Plan, sample: Sample, encoder: TurnEncoder, triplets: Sequence[Triplet]) -> float:
    """Mean size of a line: of a finished round, or of lines written for the sample."""
    complete = [round_ for round_ in plan.opponents.rounds if round_.complete]
    if complete:
        newest = complete[-1]
        return newest.path.stat().st_size / max(read_meta(newest.path).rows, 1)
    if not sample.prompts:
        return 0.0
    lines = []
    for prompt, triplet in zip(sample.prompts, triplets[:: len(triplets) // len(sample.prompts)], strict=True):
        ids = triplet.generated_ids.tolist()
        row = TripletRow.of(prompt, 0, encoder.text_of(ids, "length"), "length", ids)
        lines.append(len(row.to_json().encode()) + 1)
    return sum(lines) / len(lines)


def worst_batch(workload: Workload, plan: Plan, batch_size: int, cutoff_len: int) -> list[Triplet]:
    r"""Make the batch that needs most memory: every row as long as the longest can become.

    Args:
        workload: With the sample.
        plan: Its `max_new_tokens` bounds what is generated.
        batch_size: Triplets in the batch.
        cutoff_len: Most tokens of a row.

    Returns:
        Triplets whose ids differ between prompts, so that nothing is shared that is not shared in training.
    """
    longest = workload.longest()
    prompt_tokens = len(longest.prompt_ids)
    room = cutoff_len - prompt_tokens
    most = max(map(len, longest.responses))
    if workload.generates:
        most = max(most, min(int(plan.given.get("max_new_tokens", 1024)), room))
    triplets = []
    for number in range(batch_size):
        group, response = divmod(number, workload.responses)
        prompt = np.full(prompt_tokens, group % 7, dtype=np.int32)
        target, generated = (np.full(min(most, room), token, dtype=np.int32) for token in (0, 1 + response % 7))
        proto = None if longest.proto_ids is None else np.full(min(most, room), 8, dtype=np.int32)
        triplets.append(Triplet(f"{group}-0", FOREIGN, prompt, target, generated, False, proto))
    return triplets


def batches_of(workload: Workload, batch_size: int, *, grouped: bool) -> list[list[Triplet]]:
    """Cut the sample into batches as training does: in random order, the triplets of a prompt together if grouped."""
    order = list(GroupSampler(TripletDataset(workload.triplets), batch_size, grouped=grouped))
    return [
        [workload.triplets[index] for index in order[start : start + batch_size]]
        for start in range(0, len(order), batch_size)
    ]


def steps_of(triplets: int, batch_size: int, accumulation: int, epochs: float, max_steps: int) -> int:
    """Optimizer steps of a training, as the Trainer counts them."""
    if max_steps > 0:
        return max_steps
    batches = math.ceil(triplets / batch_size)
    return max(math.ceil(math.ceil(batches / accumulation) * epochs), 1)
