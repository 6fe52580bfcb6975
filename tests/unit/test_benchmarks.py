# SPDX-License-Identifier: Apache-2.0
"""The benchmarks at toy size: what they compare with is computed right, and their figures are what they say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import check, tables, training, vllm
from benchmarks.contenders import DPO_STAGE, FLOOR, NAIVE, OURS
from benchmarks.material import make_tokenizer
from benchmarks.naive import IGNORED, encode_row, naive_loss, pad_rows, summed_logps
from benchmarks.ours import ALL, absent_savings, variants
from benchmarks.workload import Data


FIRST, SECOND = math.exp(-0.5 * 0.3), math.exp(0.5 * 0.1)


@pytest.mark.parametrize(
    ("players", "expected"),
    [
        (1, math.log1p(math.exp(-0.3))),
        (2, (FIRST * math.log1p(math.exp(-0.3)) + SECOND * math.log1p(math.exp(0.6))) / (FIRST + SECOND)),
    ],
)
def test_the_naive_loss_by_hand(players: int, expected: float) -> None:
    """Rewards 0.1 * (-10 + 12) = 0.2 and 0.1 * (-20 + 19) = -0.1; of the second player -0.1, so eta applies, and 0."""
    policy = torch.tensor([-10.0]), torch.tensor([-20.0])
    team = [(torch.tensor([-12.0]), torch.tensor([-19.0])), (torch.tensor([-9.0]), torch.tensor([-20.0]))]
    loss = naive_loss(policy, team[:players], scale=0.1, eta=6.0, gamma=0.5)
    assert float(loss) == pytest.approx(expected)


def test_naive_logps_are_those_of_the_response_alone() -> None:
    class Uniform(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **named: object) -> object:
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 8)})

    batch = pad_rows([([1, 2], [3, 4, 5]), ([1], [2])], padding=0)
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 3, 4, 5], [IGNORED, 2, IGNORED, IGNORED, IGNORED]]
    assert summed_logps(Uniform(), batch).tolist() == pytest.approx([-3 * math.log(8), -math.log(8)])


def test_naive_rows_are_encoded_as_the_tokenizer_writes_a_chat() -> None:
    tokenizer = make_tokenizer(64)
    row = {"system": "system", "conversations": [{"from": "human", "value": "w1 w2"}]}
    ids = encode_row(tokenizer, row | {"chosen": {"from": "gpt", "value": "w3"}, "generated_ids": [9]})
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    words = tokenizer.convert_tokens_to_ids(["system", "user", "w1", "w2", "assistant", "w3"])
    system, user, first, second, assistant, answer = words
    assert ids["prompt"] == [start, system, system, end, start, user, first, second, end, start, assistant]
    assert ids["target"] == [answer, end]


def measured(iteration_seconds: float, step: float, peak: float) -> dict[str, Any]:
    return {"iteration_seconds": {1: [iteration_seconds]}, "step_seconds": [step], "peak_mib": peak}


def test_targets_are_met_or_not() -> None:
    found = {
        NAIVE: measured(100.0, 9.0, 1000.0),
        DPO_STAGE: measured(50.0, 6.0, 500.0),
        OURS + ALL: measured(45.0, 4.0, 300.0),
        training.WITHOUT_SHARING: measured(46.0, 3.0, 300.0),
        FLOOR: measured(20.0, 3.0, 100.0),
    }
    assert {row["what"]: row["met"] for row in training.targets(Data(2, 64, 192), found)} == {
        "iteration of 1 epochs / a": True,
        "iteration of 1 epochs / b": False,
        "step / floor": True,
        "peak memory / a": True,
        "peak memory / b": False,
        "step without prompt sharing / with": False,
    }
    assert training.targets(Data(2, 64, 192), {OURS + ALL: found[OURS + ALL]}) == [], "nothing to compare with"
    assert absent_savings() == []
    assert training.WITHOUT_SHARING.removeprefix(OURS) in variants()


def test_ratios_are_of_the_same_repeat_and_steps_of_other_epochs_are_left_out() -> None:
    assert tables.ratio([1.0, 20.0, 3.0], [2.0, 40.0, 6.0]) == 0.5
    run = {"seconds": 10.0, "before_training_seconds": 1.0, "step_seconds": [1.0], "step_ends": range(2, 8)}
    run |= {"peak_mib": 10.0, "device_peak_mib": None}
    found = training.summarize([run, {"error": "killed"}], epochs=[1, 3], trained=3)
    assert found["iteration_seconds"] == {1: [6.0], 3: [10.0]}


def test_losses_that_differ_are_told() -> None:
    ours, same = OURS + ALL, ([0.7, 0.6], [-10.0, -9.0])
    assert check.compare({NAIVE: same, ours: same}) == []
    other = {NAIVE: same, ours: ([0.7, 0.60002], [-10.0, -9.0])}
    assert check.compare(other) == [f"The losses of {ours} and {NAIVE} differ by 2e-05."]


def test_rows_of_vllm_are_compared(tmp_path: Path) -> None:
    (tmp_path / "tpaw").mkdir()
    for engine, rows in {"hf": [[1, 2], [3, 4, 5], [6]], "vllm": [[1, 2], [3, 9, 5], [6, 7]]}.items():
        text = "".join(json.dumps({"generated_ids": ids}) + "\n" for ids in rows)
        (tmp_path / "tpaw" / f"{engine}_greedy.jsonl").write_text(text)
    assert vllm.compare(tmp_path) == {"rows": 3, "equal": 1, "median_tokens_before_parting": 1.0}
