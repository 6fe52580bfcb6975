# SPDX-License-Identifier: Apache-2.0
"""Every text of the page is there in every language, and fits the element that shows it."""

from __future__ import annotations

import inspect
import re
import string
from pathlib import Path

import gradio as gr
import pytest

from llamafactory_tpaw.board import locales
from llamafactory_tpaw.board.locales import HELP, LANGUAGES, LOCALES, MESSAGES, Translations, say
from llamafactory_tpaw.board.locales.language import labelled, said


# What the text of a component may set. LlamaBoard passes it to the component's constructor.
PROPERTIES = {"label", "info", "value", "placeholder"}
HAN, KANA, HANGUL, CYRILLIC = "[\u4e00-\u9fff]", "[\u3040-\u30ff]", "[\uac00-\ud7af]", "[\u0400-\u04ff]"


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("table", [LOCALES, HELP, MESSAGES], ids=["locales", "help", "messages"])
def test_no_language_is_missing(table: dict[str, Translations]) -> None:
    assert {name: set(texts) for name, texts in table.items() if set(texts) != set(LANGUAGES)} == {}
    assert table


@pytest.mark.parametrize("name", LOCALES)
def test_a_translation_sets_what_the_english_text_sets(name: str) -> None:
    keys = {lang: set(properties) for lang, properties in LOCALES[name].items()}
    assert {lang for lang in keys if keys[lang] != keys["en"]} == set()
    assert keys["en"] <= PROPERTIES
    assert all(value.strip() for properties in LOCALES[name].values() for value in properties.values())


def test_every_message_is_said_somewhere() -> None:
    package = Path(locales.__file__).parents[2]
    code = "\n".join(path.read_text() for path in package.rglob("*.py") if path.parent.name != "locales")
    assert {name for name in MESSAGES if not re.search(f"[\"']{name}[\"']", code)} == set()


@pytest.mark.parametrize("name", MESSAGES)
def test_placeholders_agree(name: str) -> None:
    used = {lang: placeholders(text) for lang, text in MESSAGES[name].items()}
    assert {lang for lang in used if used[lang] != used["en"]} == set()
    assert say(name, "ru", **dict.fromkeys(used["en"], 3))


def test_texts_are_in_their_language() -> None:
    """A text that was pasted into the wrong column has the wrong letters."""
    for name, texts in {**HELP, **MESSAGES}.items():
        assert not re.search(f"{CYRILLIC}|{HAN}|{KANA}|{HANGUL}", texts["en"]), name
        assert re.search(CYRILLIC, texts["ru"]), name
        assert not re.search(f"{KANA}|{HANGUL}", texts["zh"]), name
        if name != "done_of_total":  # two numbers and a unit
            assert re.search(HAN, texts["zh"]), name
            assert re.search(HANGUL, texts["ko"]), name
            assert re.search(f"{KANA}|{HAN}", texts["ja"]), name


def test_every_element_with_a_label_has_help() -> None:
    without = {name for name in LOCALES if name not in HELP}
    # Tabs, a box that shows what happens, and buttons whose text says all.
    assert without == {
        "tpaw_tab",
        "tpaw_browser_tab",
        "tpaw_browser_prev",
        "tpaw_browser_next",
        "tpaw_chat_tab",
        "tpaw_chat_status",
    }
    assert set(HELP) <= set(LOCALES)


def test_a_language_of_a_later_llamaboard_gets_english() -> None:
    assert LOCALES["tpaw_eta"]["fr"] == LOCALES["tpaw_eta"]["en"]
    assert say("failed", "fr", code=3) == say("failed", None, code=3) == "Failed with exit code 3."
    assert labelled(en=("a", "b"))["de"] == {"label": "a", "info": "b"}
    with pytest.raises(KeyError):
        said(ru="только")["fr"]


def test_placeholders_are_seen() -> None:
    assert placeholders("{done} of {total}") == {"done", "total"}
    assert placeholders("none") == set()


def test_labels_fit_common_components() -> None:
    """Label and info can be set on fields, a value alone only on buttons."""
    field, button = (set(inspect.signature(kind.__init__).parameters) for kind in (gr.Textbox, gr.Button))
    for name, texts in LOCALES.items():
        keys = set(texts["en"])
        assert keys == {"value"} if "label" not in keys else keys <= field, name
        assert "label" in keys or keys <= button, name
    assert locales.FALLBACK in LANGUAGES


def test_every_message_that_is_said_is_there() -> None:
    folder = Path(locales.__file__).parents[1]
    sources = [path.read_text() for path in (*folder.glob("*.py"), folder.parent / "hook" / "board.py")]
    said_names = {name for text in sources for name in re.findall(r"\bsay\(\s*[\"'](\w+)[\"']", text)}
    assert len(said_names) > 20
    assert said_names - set(MESSAGES) == set()
