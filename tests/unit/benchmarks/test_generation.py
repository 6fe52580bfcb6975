# SPDX-License-Identifier: Apache-2.0
"""The benchmark of generation, with a toy model: both sides answer every prompt, and the figures are what they say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks import generation


if TYPE_CHECKING:
    from pathlib import Path

TOY = "--size toy --prompts 6 --longest-prompt 32 --max-new-tokens 12 --mean-answer 6 --batch-tokens 200 --threads 1"


def test_figures_of_a_toy_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    file = tmp_path / "new" / "result.json"
    assert generation.main([*TOY.split(), "--device", "cpu", "--repeats", "2", "--json", str(file)]) == 0
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(file.read_text())
    assert json.loads(printed[-1]) == result
    assert any(line.startswith("ours / plain loop: ") for line in printed)
    ours, plain = (result["sides"][name] for name in ("ours", "plain loop"))
    for side in (ours, plain):
        assert side["lowest"] <= side["tokens_per_second"] <= side["highest"]
        assert all(6 <= tokens <= 6 * 12 for tokens in side["tokens"])
    assert ours["tokens"][0] != ours["tokens"][1]  # other random numbers in every repeat
    assert len(result["ratios"]) == 2
    assert min(result["ratios"]) <= result["ratio"] <= max(result["ratios"])


def test_the_plain_loop_keeps_order_and_bound() -> None:
    options = generation.parse(TOY.split())
    requests = generation.make_requests(options, 512)
    batches = generation.plain_batches(requests, 100)
    assert [request for batch in batches for request in batch] == requests
    assert len(batches) > 1
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(len(each.prompt_ids) for each in batch) + 12) <= 100
