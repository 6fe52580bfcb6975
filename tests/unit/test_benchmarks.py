# SPDX-License-Identifier: Apache-2.0
"""The benchmarks at toy size: what they compare with is computed right, and their figures are what they say."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.material import make_tokenizer
from benchmarks.naive import IGNORED, encode_row, naive_loss, pad_rows, summed_logps


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
