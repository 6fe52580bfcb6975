# SPDX-License-Identifier: Apache-2.0
"""The token round trip: clean in real templates, and each break of it is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_tpaw.data.encoding import TurnEncoder
from llamafactory_tpaw.data.prompts import Prompt
from llamafactory_tpaw.runs.round_trip import round_trip_problems
from tests import encoders
from tests.runs import Project


MESSAGES = [{"role": "user", "content": " How many?\n"}]


def encoder_of(tiny_model: Path, tmp_path: Path, template: str) -> TurnEncoder:
    return encoders.build_encoder(encoders.parse(Project(tmp_path, tiny_model), template=template))


def prompt_of(encoder: TurnEncoder, text: str = " 7 apples. \n") -> Prompt:
    target = {"role": "assistant", "content": text}
    prompt_ids, target_ids = encoder.encode(MESSAGES, target, "", "")
    return Prompt("abc-0", MESSAGES, "", "", target, prompt_ids, target_ids)


def changed(prompt: Prompt, **changes: Any) -> Prompt:
    return Prompt(**(vars(prompt) | changes))


@pytest.mark.parametrize("template", encoders.TEMPLATES)
def test_real_templates_come_back_as_the_same_tokens(tiny_model: Path, tmp_path: Path, template: str) -> None:
    encoder = encoder_of(tiny_model, tmp_path, template)
    assert round_trip_problems([prompt_of(encoder)], encoder, template) == []


def test_each_break_is_named_once_with_the_first_prompt(tiny_model: Path, tmp_path: Path) -> None:
    encoder = encoder_of(tiny_model, tmp_path, "llama3")
    good = prompt_of(encoder)
    bos, eos = encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id
    doubled = changed(good, prompt_ids=np.concatenate([[bos], good.prompt_ids]).astype(np.int32))
    ended = changed(good, target_ids=np.concatenate([good.target_ids, [eos, eos]]).astype(np.int32))
    problems = round_trip_problems([good, doubled, doubled, ended], encoder, "llama3")
    texts = " | ".join(problems)
    assert "prompt 2 (abc-0) is written to a triplet file and read back as other tokens" in texts
    assert "prompt 2 (abc-0) begins with two BOS (<|begin_of_text|>)" in texts
    assert "prompt 4 (abc-0) has a target that ends with two EOS" in texts
    assert not any("prompt 3" in problem for problem in problems)


def test_a_response_that_would_not_end_as_its_target(tiny_model: Path, tmp_path: Path) -> None:
    encoder = encoder_of(tiny_model, tmp_path, "qwen")
    good = prompt_of(encoder)
    encoder.finish = lambda ids, reason: np.asarray(ids, dtype=np.int32)  # the line break after the end is forgotten
    (problem,) = round_trip_problems([good], encoder, "qwen")
    assert "Target and generated response must end alike" in problem
    assert problem.startswith("`template: qwen`: prompt 1 (abc-0) has a target whose last tokens are [")
