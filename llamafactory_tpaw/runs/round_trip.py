# SPDX-License-Identifier: Apache-2.0
"""The token round trip: whether what is generated from and sampled comes back as the same tokens in training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from ..data.triplets import TripletRow


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..data.encoding import TurnEncoder
    from ..data.prompts import Prompt


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
        for kind, message in _problems_of(prompt, encoder).items():
            found.setdefault(kind, f"`template: {template}`: prompt {number} ({prompt.id}) {message}")
    return list(found.values())


def _problems_of(prompt: Prompt, encoder: TurnEncoder) -> dict[str, str]:
    problems = {}
    tokenizer = encoder.tokenizer
    sampled = _until_stop(prompt.target_ids.tolist(), encoder)
    row = TripletRow.of(prompt, 0, encoder.text_of(sampled, "stop"), "stop", sampled)
    read = TripletRow.from_json(json.loads(row.to_json()), "the round trip")
    prompt_ids, target_ids = encoder.encode(read.messages, read.target, read.system, read.tools)
    if not np.array_equal(prompt_ids, prompt.prompt_ids) or not np.array_equal(target_ids, prompt.target_ids):
        problems["read"] = (
            "is written to a triplet file and read back as other tokens, so it would be trained on with another "
            "prompt than it was generated from. Choose a template that does not change messages."
        )
    if not np.array_equal(encoder.finish(read.generated_ids, read.finish_reason), prompt.target_ids):
        problems["end"] = (
            f"has a target whose last tokens are {prompt.target_ids.tolist()[-4:]}; if the model samples it and "
            f"stops, {encoder.finish(read.generated_ids, read.finish_reason).tolist()[-4:]} is trained on. Target and "
            "generated response must end alike: use the template of the model."
        )
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and bos != eos and prompt.prompt_ids[:2].tolist() == [bos, bos]:
        problems["bos"] = (
            f"begins with two BOS ({tokenizer.bos_token}). The tokenizer adds one that the template writes, too: use "
            "the template of the model."
        )
    if prompt.target_ids[-2:].tolist() == [eos, eos]:
        problems["eos"] = (
            f"has a target that ends with two EOS ({tokenizer.eos_token}). Remove the token from the texts of the "
            "dataset, or use the template of the model."
        )
    return problems


def _until_stop(target_ids: list[int], encoder: TurnEncoder) -> list[int]:
    """Cut a target after the token at which sampling it would stop."""
    end = len(target_ids) - len(encoder.end_of_turn)
    stops = encoder.stop_token_ids()
    place = next((index for index in range(end, len(target_ids)) if target_ids[index] in stops), len(target_ids) - 1)
    return target_ids[: place + 1]
