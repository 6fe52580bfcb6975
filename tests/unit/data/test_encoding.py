# SPDX-License-Identifier: Apache-2.0
"""Turns as token ids through LlamaFactory's real templates; prompt ids; digests of tokenizers and templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from llamafactory_tpaw.arguments.parsed import RunArguments
from llamafactory_tpaw.data.encoding import TurnEncoder, tokenizer_digest
from llamafactory_tpaw.lf import facade
from tests import encoders, tiny
from tests.runs import Project


QUESTION = {"role": "user", "content": "How many?"}
ANSWER = {"role": "assistant", "content": "48 clips."}
NO_THOUGHT = "<think>\n\n</think>\n\n"


def encoder_of(run: RunArguments, template: str, thinking: bool | None = True, **fields: Any) -> TurnEncoder:
    run.data.template, run.data.enable_thinking = template, thinking
    return encoders.build_encoder(run, **fields)


def text(encoder: TurnEncoder, ids: Any) -> str:
    return encoder.tokenizer.decode(ids)


def ids_of(encoder: TurnEncoder, *tokens: str) -> list[int]:
    return encoder.tokenizer.convert_tokens_to_ids(list(tokens))


@pytest.mark.parametrize(
    ("template", "thinking", "end"),
    [
        ("default", True, "<|endoftext|>\n"),
        ("llama3", True, "<|eot_id|>"),
        ("qwen3", True, "<|im_end|>\n"),
        ("qwen3", None, "<|im_end|>\n"),
        ("breeze", True, "<|endoftext|>"),  # `efficient_eos`: LlamaFactory adds the token beside the template
        ("falcon", True, "\n<|endoftext|>"),
    ],
)
def test_end_of_turn(run: RunArguments, template: str, thinking: bool | None, end: str) -> None:
    encoder = encoder_of(run, template, thinking)
    assert text(encoder, encoder.end_of_turn) == end
    target = encoder.encode([QUESTION], ANSWER)[1].tolist()
    assert target[-len(encoder.end_of_turn) :] == encoder.end_of_turn
    assert text(encoder, target).endswith("48 clips." + end)


def test_finish_adds_what_follows_the_stop_token(run: RunArguments) -> None:
    encoder = encoder_of(run, "qwen")
    body = encoder.tokenizer.encode("48 clips.")
    im_end, endoftext, newline = ids_of(encoder, "<|im_end|>", "<|endoftext|>", "Ċ")
    assert encoder.finish([*body, im_end], "stop").tolist() == [*body, im_end, newline]
    assert encoder.finish([*body, endoftext], "stop").tolist() == [*body, endoftext]
    assert encoder.finish(body, "length").tolist() == body
    assert encoder.finish([], "length").tolist() == []
    assert encoder.text_of([*body, endoftext], "stop") == "48 clips."
    # A response whose last token before the limit happens to be a line break did not end its turn.
    falcon = encoder_of(run, "falcon")
    ids = [*body, falcon.end_of_turn[0]]
    assert falcon.finish(ids, "length").tolist() == ids
    assert falcon.text_of(ids, "length") == "48 clips.\n"


@pytest.mark.parametrize("template", [*encoders.TEMPLATES, "falcon"])
@pytest.mark.parametrize("content", ["48 clips.", "", " \n ", "x\n<|im_start|>y</think>", "größer — 漢字 🙂"])
def test_target_ids_survive_as_sampled_ids_and_as_text(run: RunArguments, template: str, content: str) -> None:
    encoder = encoder_of(run, template)
    target = encoder.encode([QUESTION], {"role": "assistant", "content": content})[1].tolist()
    stop = next(index for index, token in enumerate(target) if token in encoder.stop_token_ids())
    sampled = target[: stop + 1]
    assert encoder.finish(sampled, "stop").tolist() == target
    written = encoder.text_of(sampled, "stop")
    assert written == (NO_THOUGHT if template == "qwen3" and "</think>" not in content else "") + content
    assert encoder.encode_text(written, "stop").tolist() == target
    assert encoder.encode_text(written, "length").tolist() == target[: len(target) - len(encoder.end_of_turn)]


def test_stop_token_ids(run: RunArguments) -> None:
    encoder = encoder_of(run, "llama3")
    eot, eom, other = ids_of(encoder, "<|eot_id|>", "<|eom_id|>", "<|endoftext|>")
    assert encoder.stop_token_ids() == sorted([eot, eom])
    assert encoder.stop_token_ids(other) == sorted([eot, eom, other])
    assert encoder.stop_token_ids([other, eot]) == sorted([eot, eom, other])
    assert encoder_of(run, "default").stop_token_ids() == [other]


def test_tokenizer_digest_survives_saving_and_padding_and_sees_what_changes_ids(
    run: RunArguments, tmp_path: Path
) -> None:
    for template in encoders.TEMPLATES:
        encoder = encoder_of(run, template)
        digest = tokenizer_digest(encoder.tokenizer)
        encoder.tokenizer.save_pretrained(tmp_path / template)
        loaded = encoders.build_encoder(run, AutoTokenizer.from_pretrained(tmp_path / template))
        loaded.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=1)
        assert tokenizer_digest(loaded.tokenizer) == digest
    added, ended = tiny.build_tokenizer(), tiny.build_tokenizer()
    added.add_tokens(["Natalia"])
    ended.eos_token = "<|im_end|>"
    others = [added, ended, tiny.build_tokenizer("<|begin_of_text|>"), tiny.build_tokenizer()]
    assert len({tokenizer_digest(tokenizer) for tokenizer in others}) == 4


def test_template_digest_sees_what_a_template_writes(project: Project) -> None:
    run = encoders.parse(project)
    plain = encoder_of(run, "qwen3").template_digest
    assert encoder_of(run, "qwen3").template_digest == plain
    others = [
        encoder_of(run, "qwen3", default_system="Be brief."),
        encoder_of(run, "qwen3", stop_words=["<|im_end|>", "<|endoftext|>"]),
        encoder_of(run, "qwen3", format_user=facade.TEMPLATES["llama3"].format_user),
        encoder_of(run, "qwen3", False),
        encoders.build_encoder(encoders.parse(project, tool_format="llama3", template="qwen3")),
    ]
    assert len({plain, *(other.template_digest for other in others)}) == len(others) + 1
    with_system = encoders.build_encoder(encoders.parse(project, default_system="Be brief.", template="qwen3"))
    assert with_system.template_digest == others[0].template_digest


def with_chat(encoder: TurnEncoder, chat_template: Any) -> TurnEncoder:
    return type(encoder)(encoder.tokenizer, encoder.template, chat_template)


@pytest.mark.parametrize("template", encoders.TEMPLATES)
def test_a_template_is_held_to_the_checkpoints_own_one(run: RunArguments, template: str) -> None:
    encoder = encoder_of(run, template)
    same = encoder.template._get_jinja_template(encoder.tokenizer)  # as LlamaFactory writes it
    assert with_chat(encoder, same).template_warnings(template, "saves/sft") == []
    # A base model has none, and some write no such conversation.
    for none in (None, "{{ raise_exception('no') }}", "{{ messages[0] + 1 }}"):
        assert with_chat(encoder, none).template_warnings(template, "saves/sft") == []
    (warning,) = with_chat(encoder, "{{ '0. ' }}" + same).template_warnings(template, "saves/sft")
    assert "after '' comes" in warning
    assert "there '0. " in warning


def test_the_first_difference_of_two_templates_is_shown(run: RunArguments) -> None:
    """Of SmolLM2 the checkpoint's own system text ends without a full stop."""
    said = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    encoder = encoder_of(run, "smollm2", default_system=said)
    chat = encoder.template._get_jinja_template(encoder.tokenizer)
    (warning,) = with_chat(encoder_of(run, "smollm2"), chat).template_warnings("smollm2", "saves/sft")
    assert warning.startswith(
        "`template: smollm2` writes turns otherwise than the chat template of saves/sft: after '"
    )
    assert "Hugging Face' comes '.<|im_end|>\\n<|im_start|>user" in warning
    assert "there '<|im_end|>\\n<|im_start|>user" in warning
    assert "`default_system` sets" in warning


@pytest.mark.parametrize("template", ["empty", *encoders.TEMPLATES])
def test_targets_without_an_end_of_turn(run: RunArguments, template: str) -> None:
    warnings = encoder_of(run, template).template_warnings(template, "saves/sft")
    assert [text.partition(",")[0] for text in warnings] == ["`template: empty` ends no turn with a stop token"] * (
        template == "empty"
    )
