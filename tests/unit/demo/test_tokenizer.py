# SPDX-License-Identifier: Apache-2.0
"""The demo's tokenizer: text from tokens encodes to the same tokens, through LlamaFactory's template and from disk."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.evaluate import encode_prompt
from demo.make_task import SIZES, write_base_model
from demo.problems import make_splits
from demo.tokenizer import SIGNS, build_tokenizer, vocabulary
from llamafactory_tpaw.lf import facade


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_base_model(tmp_path_factory.mktemp("demo") / "base", seed=0)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def template(tokenizer):
    settings = SimpleNamespace(template="default", train_on_prompt=False, tool_format=None, default_system="")
    return facade.get_template_and_fix_tokenizer(tokenizer, settings)


@pytest.fixture(scope="module")
def problems():
    return [problem for split in make_splits(0, SIZES).values() for problem in split]


def test_no_token_is_added_by_saving_or_by_the_template(tokenizer, template):
    assert len(tokenizer) == len(build_tokenizer()) == len(vocabulary())
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == vocabulary()


def test_every_problem_round_trips_through_the_template(tokenizer, template, problems):
    for problem in problems:
        turn = [{"role": "user", "content": problem.question}, {"role": "assistant", "content": problem.answer}]
        prompt, response = template.encode_oneturn(tokenizer, turn, "", None)
        text = tokenizer.decode(prompt + response)
        assert text == f"Human: {problem.question}<eos>\nAssistant:{problem.answer}<eos>\n"
        assert tokenizer.encode(text, add_special_tokens=False) == prompt + response
        assert tokenizer.unk_token_id not in prompt + response
        assert prompt == encode_prompt(tokenizer, problem.question)


def test_any_sampled_tokens_round_trip(tokenizer):
    rng = random.Random(0)
    for _ in range(3000):
        ids = [rng.randrange(len(tokenizer)) for _ in range(12)]
        assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) == ids


def test_digits_are_single_tokens(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("407", add_special_tokens=False)) == ["4", "0", "7"]
    assert set("0123456789") <= set(SIGNS)


def test_foreign_words_are_unknown(tokenizer):
    assert tokenizer.unk_token_id in tokenizer.encode("zebra", add_special_tokens=False)


def test_the_base_model_has_the_vocabulary_and_size(checkpoint, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.config.architectures == ["Qwen2ForCausalLM"]
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert 0.3e6 < model.num_parameters() < 0.5e6
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
