# SPDX-License-Identifier: Apache-2.0
"""What an iteration has to do where a prompt has several responses, in each round another number of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.data.files import read_json, write_json_atomic
from llamafactory_tpaw.data.triplets import meta_path
from llamafactory_tpaw.runs.estimates.disk import disk_spaces
from llamafactory_tpaw.runs.estimates.workload import (
    Sample,
    Workload,
    batches_of,
    describe_workload,
    samples_of_rounds,
    worst_batch,
)
from llamafactory_tpaw.runs.preflight import Plan, make_plan, with_defaults
from llamafactory_tpaw.team.manifest import write_manifest
from tests import encoders
from tests.runs import Project
from tests.unit.data.writing import make_prompt
from tests.unit.runs.test_preflight import write_triplets
from tests.unit.team.test_manifest import make_manifest


PROMPTS = 10


@pytest.fixture
def plan(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Iteration 1 with three responses a prompt, after a round with two, one of which failed."""
    for name in ("sft", "play_iter0"):
        shutil.copytree(tiny_model, tmp_path / "saves" / name)
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path, Path("saves/sft"))
    write_manifest("saves/play_iter0", make_manifest())
    path = write_triplets()
    changes = {"samples": 2, "rows": 2 * PROMPTS - 1, "failed": ["x#1"], "ids_digest": "d"}
    write_json_atomic(meta_path(path), read_json(meta_path(path)) | changes)
    return make_plan(project.settings(1, tpaw_samples_per_prompt=3, val_size=2))


@pytest.fixture
def workload(plan: Plan, tiny_model: Path) -> Workload:
    encoder = encoders.build_encoder(encoders.parse(Project(Path(), tiny_model)))
    prompts = [make_prompt(encoder, f"{number} + 1?", str(number + 1)) for number in range(4)]
    sample = Sample(prompts, [], [], PROMPTS, "the first 4 rows")
    return describe_workload(plan, encoder, sample, SimpleNamespace(cutoff_len=256))


def test_rows_and_sequences_are_counted(plan: Plan, workload: Workload) -> None:
    assert samples_of_rounds(plan) == [2, 3]
    assert (workload.prompts, workload.responses, workload.samples, workload.failed) == (PROMPTS, 5, 3, 1)
    assert workload.train_triplets == 5 * PROMPTS - 1
    assert workload.new_rows == 3 * PROMPTS
    assert workload.scored_sequences == 2 * (1 + 5) * PROMPTS, "two players, a target and five responses a prompt"


def test_the_sample_has_every_response(workload: Workload) -> None:
    assert workload.sampled_prompts == 4
    assert [(triplet.iteration, triplet.sample) for triplet in workload.triplets[:5]] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip
    assert [len(batch) for batch in batches_of(workload, 8, grouped=True)] == [8, 8, 4]


def test_the_largest_batch_shares_what_a_prompt_has_in_common(plan: Plan, workload: Workload) -> None:
    assert [triplet.id for triplet in worst_batch(workload, plan, 7, 256)] == ["0-0"] * 5 + ["1-0"] * 2


def test_what_is_written(plan: Plan, workload: Workload) -> None:
    keys: dict[str, Any] = with_defaults(plan.given) | vars(plan.tpaw_args)
    figures = {space.figure.name: space.figure for space in disk_spaces(plan, keys, workload)}
    triplets = figures["triplets"]
    assert triplets.amount == pytest.approx(3 * PROMPTS * workload.row_bytes + 1024)
    assert triplets.how.startswith("10 prompts with 3 responses each, ")
    assert figures["half-done triplets"].amount == pytest.approx(triplets.amount - 1024)
    once = sum(len(ids) for triplet in workload.triplets[::5] for ids in (triplet.prompt_ids, triplet.target_ids))
    responses = sum(len(triplet.generated_ids) for triplet in workload.triplets)
    tokens = once / 4 * PROMPTS + responses / len(workload.triplets) * (5 * PROMPTS - 1)
    assert figures["token ids"].amount == pytest.approx(4 * tokens + 44 * PROMPTS)
