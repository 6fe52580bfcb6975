# SPDX-License-Identifier: Apache-2.0
"""How the demo measures: greedy answers in any batch, the right ones counted, intervals that hold."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo import evaluate
from demo.make_task import write_base_model
from demo.problems import make_splits


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_base_model(tmp_path_factory.mktemp("demo") / "base", seed=1)


def test_batches_of_any_size_answer_alike(checkpoint):
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModelForCausalLM.from_pretrained(checkpoint)
    questions = [problem.question for problem in make_splits(1, {"test": 7})["test"]]
    alone = evaluate.answer_questions(model.eval(), tokenizer, questions, 1)
    assert evaluate.answer_questions(model, tokenizer, questions, 7) == alone
    assert evaluate.answer_questions(model, tokenizer, questions, 3) == alone
    assert len(set(alone)) > 1


def test_answers_are_the_greedy_ones(checkpoint):
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModelForCausalLM.from_pretrained(checkpoint)
    ids, new = evaluate.encode_prompt(tokenizer, "Tom has 3 pens, buys 4. How many now?"), []
    while len(new) < evaluate.MAX_NEW_TOKENS:
        token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        new.append(token)
    answers = evaluate.answer_questions(model, tokenizer, ["Tom has 3 pens, buys 4. How many now?"], 4)
    assert answers == [tokenizer.decode(new)]


def test_hits_line_up_with_the_problems(checkpoint, monkeypatch):
    rows = [{"question": "a", "answer": f"answer {number}"} for number in (1, 2, 3)]
    monkeypatch.setattr(evaluate, "answer_questions", lambda *_: ["answer 1", "answer", "9; answer 3"])
    result = evaluate.evaluate_checkpoint(checkpoint, rows)
    assert (result["hits"], result["correct"], result["n"]) == ("101", 2, 3)
    assert result["accuracy"] == pytest.approx(2 / 3)


def test_wilson_interval():
    """For 8 of 10: centre (0.8 + z²/20) / (1 + z²/10) = 0.7167, half width 0.2268 with z = 1.96."""
    assert evaluate.wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert evaluate.wilson_interval(0, 10)[0] == 0.0
    assert evaluate.wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_the_command_prints_one_json_object_a_checkpoint(checkpoint, tmp_path, monkeypatch, capsys):
    problem = make_splits(2, {"test": 1})["test"][0]
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": problem.question, "answer": problem.answer}) + "\n\n")
    arguments = ["evaluate", str(checkpoint), str(checkpoint), "--data", str(tmp_path / "p.jsonl")]
    monkeypatch.setattr("sys.argv", arguments)
    evaluate.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2
    assert set(rows[0]) == {"checkpoint", "n", "correct", "accuracy", "interval"}
    assert rows[0]["n"] == 1
