# SPDX-License-Identifier: Apache-2.0
"""A round of a real run: in one process, and in one for each device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.source import find_entry
from llamafactory_tpaw.generation.local import generate_round
from tests import encoders
from tests.runs import Project


if TYPE_CHECKING:
    from pathlib import Path


def test_several_devices_give_the_bytes_of_one(tmp_path: Path, tiny_model: Path) -> None:
    settings = {"tpaw_generate_batch_tokens": 32, "tpaw_samples_per_prompt": 2, "max_new_tokens": 8}
    run = encoders.parse(Project(tmp_path, tiny_model), **settings)
    round_ = Round(0, find_entry(run.data.dataset[0], run.data.dataset_dir))
    contents = []
    for devices in ([], ["2", "1"]):
        meta = generate_round(run, round_, devices)
        assert (meta.rows, meta.hardware["processes"]) == (32, max(len(devices), 1))
        contents.append(round_.path.read_bytes())
        for path in round_.path.parent.glob(f"{round_.path.stem}*"):
            path.unlink()
    assert contents[0] == contents[1]
