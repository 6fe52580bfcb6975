# SPDX-License-Identifier: Apache-2.0
"""Which template a model was made for, with LlamaFactory's own templates and tokenizers made on the spot."""

from __future__ import annotations

from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.lf import facade
from llamafactory_tpaw.runs.scaffold.settings import Settings
from llamafactory_tpaw.runs.scaffold.templates import MODEL_TYPES, Choice, choose_template
from tests import tiny


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
QWEN = "{% if messages[0].role != 'system' %}<|im_start|>system\n" + QWEN_SYSTEM + "<|im_end|>\n{% endif %}" + TURNS
# As Llama 3.1: a date stands before the system text, which LlamaFactory's template does not write.
LLAMA = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|eot_id|>"
    "{% for m in messages if m.role != 'system' %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
)
# As Qwen3: thoughts stand in the last response only.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
)
FOREIGN = "{% for m in messages %}@{{ m.role }}@{{ m.content }}@@{% endfor %}"


def choose(
    chat_template: str | None = None,
    model_type: str = "nothing",
    known_as: str | None = None,
    thinks: bool = False,
    bos: str | None = None,
    **settings: Any,
) -> Choice:
    tokenizer = tiny.build_tokenizer(bos)
    tokenizer.chat_template = chat_template
    return choose_template(Settings("m", "d", **settings), tokenizer, model_type, known_as, thinks)


@pytest.mark.parametrize(
    ("chat_template", "name", "bos"),
    [(QWEN, "qwen", None), (LLAMA, "llama3", "<|begin_of_text|>"), (QWEN3, "qwen3", None)],
    ids=["qwen", "llama3", "qwen3"],
)
def test_by_the_chat_template(chat_template: str, name: str, bos: str | None) -> None:
    choice = choose(chat_template, "llama" if name == "llama3" else "nothing", bos=bos)
    assert choice.name == name
    assert choice.reason.startswith("it writes a conversation as the tokenizer's chat template does")


@pytest.mark.parametrize("name", ["default", "qwen", "llama3"])
def test_what_llamafactory_saves_is_recognised(name: str) -> None:
    """A checkpoint of LlamaFactory has the chat template that LlamaFactory wrote into its tokenizer."""
    tokenizer = tiny.build_tokenizer("<|begin_of_text|>" if name == "llama3" else None)
    template = facade.TEMPLATES[name]
    template.fix_special_tokens(tokenizer)
    tokenizer.chat_template = template._get_jinja_template(tokenizer)
    assert choose_template(Settings("m", "d"), tokenizer, "nothing", None, False).name == name


def test_templates_that_write_alike_are_not_guessed_between() -> None:
    with pytest.raises(ConfigError) as caught:
        choose(TURNS)
    message = str(caught.value)
    assert "`chatml`" in message
    assert "`qwen3_nothink`" in message
    assert "`qwen`," not in message
    assert "all write a conversation as the tokenizer's chat template does, but end it otherwise." in message
    assert "`--template chatml`" in message


def test_what_else_is_known_settles_it() -> None:
    assert choose(TURNS, "qwen3").name == "qwen3_nothink"
    assert choose(TURNS, like_template="chatml").name == "chatml"


@pytest.mark.parametrize(
    ("known_as", "name"),
    [("Qwen2.5-1.5B-Instruct", "qwen"), ("Qwen2.5-1.5B", "qwen"), ("Llama-3-8B", "llama3")],
)
def test_by_llamafactorys_list(known_as: str, name: str) -> None:
    choice = choose(FOREIGN, known_as=known_as)
    assert choice == Choice(name, f"LlamaFactory lists it for {known_as}")


def test_by_model_type() -> None:
    choice = choose(None, "qwen2")
    assert choice.name == "qwen"
    assert choice.reason == "by model type qwen2 and the special tokens; the tokenizer has no chat template"
    assert [choose(None, "qwen3", thinks=thinks).name for thinks in (True, False)] == ["qwen3", "qwen3_nothink"]


def test_nothing_known_is_refused_with_what_fits() -> None:
    for chat_template, why in ((None, "there is no chat template in"), (FOREIGN, "no template writes like")):
        with pytest.raises(ConfigError) as caught:
            choose(chat_template, "gpt2")
        assert f"The template of a model of type gpt2 cannot be told: LlamaFactory does not list it, and {why}" in str(
            caught.value
        )
        assert "`qwen`, " in str(caught.value)
        assert "`gemma`" not in str(caught.value)


def test_a_type_whose_tokens_are_missing_is_not_taken() -> None:
    with pytest.raises(ConfigError, match="cannot be told"):
        choose(None, "gemma")


def test_a_given_template() -> None:
    assert choose(FOREIGN, keys={"template": "default"}) == Choice("default", "as given")
    with pytest.raises(
        ConfigError, match=r"`template: qwn` is not a template of LlamaFactory\. Did you mean `qwen`\?"
    ):
        choose(keys={"template": "qwn"})
    with pytest.raises(ConfigError) as caught:
        choose(keys={"template": "gemma"})
    assert "`template: gemma` (as given) needs the tokens <end_of_turn>" in str(caught.value)


def test_the_templates_of_the_table_exist() -> None:
    assert {name for names in MODEL_TYPES.values() for name in names} <= set(facade.TEMPLATES)
