# SPDX-License-Identifier: Apache-2.0
"""How long prompts and targets are under the model's tokenizer and template, and the limits that follow."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...arguments.fields import FIELDS, TpawArguments
from ...arguments.parsed import parse_single_process
from ...data.encoding import TurnEncoder
from ...data.prompts import load_prompts
from ...data.source import DATASET_INFO
from ...errors import DataError
from ...lf import facade
from .dataset import SAMPLE_ROWS, SftSet
from .model import Model
from .settings import Settings


if TYPE_CHECKING:
    from ...data.prompts import BadRow, PromptSet

# Beyond this, memory rather than the data decides, and the user does.
MOST_TOKENS = 4096
NO_LIMIT = 2**31
SHARE = 0.995
TOKEN_STEP = 64
BAD_SHARE = 0.01
USELESS_SHARE = 0.1


@dataclass(frozen=True)
class Lengths:
    r"""Lengths of a sample of the SFT set, in tokens.

    Attributes:
        prompts: Of each prompt.
        targets: Of each target, end of turn included.
        bad_rows: The sample's rows that no triplet can be made of, whatever the limits.
        total: Rows of the set; None where only the sample is known.
    """

    prompts: list[int]
    targets: list[int]
    bad_rows: list[BadRow]
    total: int | None

    @property
    def sampled(self) -> int:
        """Rows looked at."""
        return len(self.prompts) + len(self.bad_rows)

    @property
    def is_whole(self) -> bool:
        """Whether every row was looked at."""
        return self.total == self.sampled

    def limits(self, max_positions: int | None, given: Mapping[str, int]) -> dict[str, int]:
        r"""Choose `cutoff_len` and `max_new_tokens` where they are not given.

        Every prompt of the sample and nearly every whole row fits, up to the model's positions and 4096 tokens; nearly
        every target could be generated in full.
        """
        most = min(max_positions or MOST_TOKENS, MOST_TOKENS)
        whole = _share([prompt + target for prompt, target in zip(self.prompts, self.targets, strict=True)])
        target = _share(self.targets)
        longest = max(max(self.prompts) + min(target, TOKEN_STEP), whole)
        new = given.get("max_new_tokens", _round_up(target))
        cutoff = min(max(_round_up(longest), _round_up(new + 1)), most)
        cutoff = given.get("cutoff_len", cutoff)
        fitting = min(new, max(cutoff - TOKEN_STEP, cutoff // 2))
        return {"cutoff_len": cutoff, "max_new_tokens": given.get("max_new_tokens", fitting)}

    def bad_allowance(self, cutoff_len: int, min_response: int, prompts: int | None) -> int:
        r"""How many bad rows are to be expected under `cutoff_len`.

        Returns:
            Their number where every row was looked at; else what the sample lets expect, and 1 % of the prompts.
        """
        bad = self.count_bad(cutoff_len, min_response)
        if self.is_whole:
            return bad
        among = prompts or self.total or self.sampled
        return max(round(among * BAD_SHARE), _ceil(1.5 * among * bad / self.sampled))

    def count_bad(self, cutoff_len: int, min_response: int) -> int:
        """Bad rows of the sample under `cutoff_len`."""
        return len(self.bad_rows) + sum(cutoff_len - prompt < min_response for prompt in self.prompts)


def measure(settings: Settings, model: Model, template: str, sft_set: SftSet) -> Lengths:
    r"""Encode a sample of the SFT set as the stage would.

    Raises:
        DataError: If the set cannot be read, or no row, or too few, can be used.
    """
    with tempfile.TemporaryDirectory(prefix="llamafactory-tpaw-") as folder:
        if sft_set.path is None:
            entry = {**sft_set.entry, **_absolute(sft_set.entry, settings)}
        else:
            entry = {**sft_set.entry, "file_name": "sample.jsonl"}
            _write_sample(Path(folder) / "sample.jsonl", sft_set)
        (Path(folder) / DATASET_INFO).write_text(json.dumps({sft_set.name: entry}), encoding="utf-8")
        found = _load(settings, model, template, sft_set, folder)
    lengths = Lengths(
        prompts=found.prompts.prompt_tokens.tolist(),
        targets=found.prompts.target_tokens.tolist(),
        bad_rows=found.bad_rows,
        total=sft_set.total,
    )
    if len(found.bad_rows) > USELESS_SHARE * lengths.sampled:
        first = found.bad_rows[0]
        number = sft_set.numbers[first.row - 1] if sft_set.numbers else first.row
        raise DataError(
            f"`--data {settings.data}`: {len(found.bad_rows)} of {lengths.sampled} rows looked at cannot be used. "
            f"First: row {number}, because {first.reason}. Correct the rows, or name the columns with `--columns`."
        )
    return lengths


def _absolute(entry: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """A folder's or script's place, seen from anywhere."""
    base = (settings.folder / settings.dataset_dir).resolve()
    return {key: str(base / entry[key]) for key in ("file_name", "script_url") if key in entry}


def _write_sample(path: Path, sft_set: SftSet) -> None:
    columns = list(sft_set.entry.get("columns", {}).values()) or list(sft_set.rows[0])
    with path.open("w", encoding="utf-8") as stream:
        for row in sft_set.rows:
            stream.write(json.dumps({column: row.get(column) for column in columns}, default=str) + "\n")


def _load(settings: Settings, model: Model, template: str, sft_set: SftSet, folder: str) -> PromptSet:
    given = {
        **settings.model_keys,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "model_name_or_path": str(settings.folder / model.path) if model.is_local else model.path,
        "dataset": sft_set.name,
        "dataset_dir": folder,
        "template": template,
        "output_dir": os.path.join(folder, "out"),
        "report_to": "none",
        "use_cpu": True,
        "cutoff_len": NO_LIMIT,
        **({} if sft_set.path else {"max_samples": SAMPLE_ROWS}),
        **{key: settings.keys[key] for key in ("default_system", "enable_thinking") if key in settings.keys},
    }
    run = parse_single_process(given)
    tokenizer = facade.load_tokenizer(run.model)["tokenizer"]
    encoder = TurnEncoder(tokenizer, facade.get_template_and_fix_tokenizer(tokenizer, run.data))
    tpaw_args = TpawArguments(
        tpaw_prompts=sft_set.name,
        tpaw_turn=settings.keys.get("tpaw_turn", FIELDS["tpaw_turn"].default),
        tpaw_max_bad_rows=NO_LIMIT,
        tpaw_cache_dir=folder,
    )
    if sft_set.path:
        run.model.cache_dir = folder  # the sample is not worth keeping
    try:
        return load_prompts(encoder, run.model, run.data, run.training, tpaw_args)
    except DataError as error:
        real = str(sft_set.path or sft_set.entry.get("hf_hub_url") or settings.data)
        told = [problem.replace(os.path.join(folder, "sample.jsonl"), real) for problem in error.problems]
        if sft_set.path is None:
            told.append(
                f"The lengths of `--data {settings.data}` are needed for `cutoff_len` and `max_new_tokens`. Where the "
                "set cannot be reached from here, give both: `--cutoff-len` and `--max-new-tokens`."
            )
        raise DataError(told) from error


def _share(lengths: Iterable[int]) -> int:
    ordered = sorted(lengths)
    return ordered[min(int(SHARE * len(ordered)), len(ordered) - 1)]


def _round_up(tokens: int) -> int:
    return _ceil(tokens / TOKEN_STEP) * TOKEN_STEP


def _ceil(number: float) -> int:
    return -int(-number // 1)
