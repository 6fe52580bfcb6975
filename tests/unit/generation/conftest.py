# SPDX-License-Identifier: Apache-2.0
"""The tiny model, loaded once, and a round to generate."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

from llamafactory_tpaw.arguments.parsed import RunArguments
from llamafactory_tpaw.data.encoding import TurnEncoder
from llamafactory_tpaw.data.prompts import load_prompts
from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.source import find_entry, triplet_entry
from llamafactory_tpaw.generation.base import SamplingSettings
from llamafactory_tpaw.generation.workflow import Job
from tests import encoders
from tests.runs import ADDITIONS, Project


CUTOFF, PAD = 60, 0


def sampling(**changes: Any) -> SamplingSettings:
    """Settings that sample from the model's own distribution but for the changes."""
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 12, "seed": 5}
    return SamplingSettings(**(plain | changes))


@pytest.fixture(scope="session")
def loaded(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


@pytest.fixture
def model(loaded: PreTrainedModel) -> PreTrainedModel:
    """A copy that a test may change."""
    return copy.deepcopy(loaded)


def make_job(run: RunArguments, encoder: TurnEncoder, iteration: int) -> Job:
    """The round of a run that has an entry `d<t>`."""
    return Job(
        round=Round(iteration, find_entry(f"d{iteration}", run.data.dataset_dir)),
        prompts=load_prompts(encoder, run.model, run.data, run.training, run.finetuning),
        selection={"tpaw_max_prompts": None},
        encoder=encoder,
        generator="a" * 64,
        generator_path=f"saves/theta_{iteration}",
        settings=SamplingSettings.of(vars(run.generating) | {"seed": run.training.seed}),
        engine={"name": "fake", "version": "1", "dtype": "float32"},
        cutoff_len=run.data.cutoff_len,
    )


@pytest.fixture(scope="session")
def common_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """17 prompts, two of them alike, and a bad row."""
    folder = tmp_path_factory.mktemp("job")
    project = Project(folder, folder / "theta_0")
    rows = [*ADDITIONS, ADDITIONS[3], {"question": "x" * 100, "answer": "y"}]
    project.add_dataset("sft", rows, columns={"prompt": "question", "response": "answer"})
    project.add_entry("d1", triplet_entry("d1"))
    run = encoders.parse(
        project, template="llama3", cutoff_len=CUTOFF, tpaw_prompts="sft", tpaw_max_bad_rows=1, max_new_tokens=20
    )
    return make_job(run, encoders.build_encoder(run), 1)
