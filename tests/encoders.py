# SPDX-License-Identifier: Apache-2.0
"""LlamaFactory's real templates over the tiny tokenizer, and the arguments of a run, parsed in this process."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

from transformers import PreTrainedTokenizerBase

from llamafactory_tpaw.arguments.parsed import RunArguments, parse_single_process
from llamafactory_tpaw.data.encoding import TurnEncoder
from llamafactory_tpaw.lf import facade
from tests import tiny
from tests.runs import Project


BOS = {"llama3": "<|begin_of_text|>"}
# Two templates without special tokens for the end of a turn, two with, and one that thinks.
TEMPLATES = ("default", "qwen", "llama3", "qwen3")


def parse(project: Project, iteration: int = 0, **changes: Any) -> RunArguments:
    """Parse a project's settings as generation and scoring do; nothing is written outside its folder."""
    paths = {
        "dataset_dir": str(project.root / "data"),
        "output_dir": str(project.root / "saves" / "out"),
        "cache_dir": str(project.root / "cache"),
        "tpaw_cache_dir": str(project.root / "saves" / "tpaw_cache"),
    }
    return parse_single_process(project.settings(iteration, **(paths | changes)))


def build_encoder(
    run: RunArguments, tokenizer: PreTrainedTokenizerBase | None = None, **template_fields: Any
) -> TurnEncoder:
    """Join the run's template, some of its fields replaced, with a tokenizer that LlamaFactory adapts to it.

    LlamaFactory writes `default_system` and the like into its one object of a template, so a copy stands in for it.
    """
    name = run.data.template
    template = copy.deepcopy(facade.TEMPLATES[name])
    for field, value in template_fields.items():
        setattr(template, field, value)
    tokenizer = tokenizer or tiny.build_tokenizer(BOS.get(name))
    with mock.patch.dict(facade.TEMPLATES, {name: template}):
        return TurnEncoder(tokenizer, facade.get_template_and_fix_tokenizer(tokenizer, run.data))
