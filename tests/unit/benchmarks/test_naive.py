# SPDX-License-Identifier: Apache-2.0
"""The naive TPAW of the benchmarks against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.naive import IGNORED, encode_row, naive_loss, pad_rows, summed_logps


def test_loss_of_one_player_by_hand() -> None:
    """Rewards 0.1 * (-10 + 12) = 0.2 and 0.1 * (-20 + 19) = -0.1: the loss is log(1 + exp(-0.3))."""
    policy = torch.tensor([-10.0]), torch.tensor([-20.0])
    player = torch.tensor([-12.0]), torch.tensor([-19.0])
    loss = naive_loss(policy, [player], scale=0.1, eta=6.0, gamma=0.5)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-0.3)))


def test_loss_of_two_players_by_hand() -> None:
    """The second player's rewards are -0.1 and 0, so eta applies, and its margin of -0.1 gives it more weight."""
    policy = torch.tensor([-10.0]), torch.tensor([-20.0])
    players = [(torch.tensor([-12.0]), torch.tensor([-19.0])), (torch.tensor([-9.0]), torch.tensor([-20.0]))]
    first, second = math.exp(-0.5 * 0.3), math.exp(0.5 * 0.1)
    expected = first * math.log1p(math.exp(-0.3)) + second * math.log1p(math.exp(0.6))
    loss = naive_loss(policy, players, scale=0.1, eta=6.0, gamma=0.5)
    assert float(loss) == pytest.approx(expected / (first + second))


def test_logps_are_those_of_the_response_alone() -> None:
    class Uniform(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **named: object) -> object:
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 8)})

    batch = pad_rows([([1, 2], [3, 4, 5]), ([1], [2])], padding=0)
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 3, 4, 5], [IGNORED, 2, IGNORED, IGNORED, IGNORED]]
    expected = [-3 * math.log(8), -math.log(8)]
    assert summed_logps(Uniform(), batch).tolist() == pytest.approx(expected)


def test_rows_are_encoded_as_the_tokenizer_writes_a_chat() -> None:
    from benchmarks.material import make_tokenizer

    tokenizer = make_tokenizer(64)
    row = {
        "system": "system",
        "conversations": [{"from": "human", "value": "w1 w2"}],
        "chosen": {"from": "gpt", "value": "w3"},
        "generated_ids": [9, tokenizer.eos_token_id],
    }
    ids = encode_row(tokenizer, row)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    words = tokenizer.convert_tokens_to_ids(["system", "user", "w1", "w2", "assistant", "w3"])
    system, user, first, second, assistant, answer = words
    assert len(tokenizer) == 64
    assert ids["prompt"] == [start, system, system, end, start, user, first, second, end, start, assistant]
    assert ids["target"] == [answer, end]
