# SPDX-License-Identifier: Apache-2.0
"""Texts in LlamaBoard's languages, and foreign text that is shown as it is."""

from __future__ import annotations

from pathlib import Path
from string import Formatter

import pytest

from llamafactory_tpaw.board import words
from tests.unit.board.page import DrivenPage


LANGUAGES = {"en", "ru", "zh", "ko", "ja"}
FOLDER = Path(words.__file__).parent
TABLES = {**words.ELEMENTS, **words.MESSAGES}


@pytest.mark.parametrize("name", TABLES)
def test_every_text_is_there_in_every_language(name: str) -> None:
    texts = TABLES[name]
    assert set(texts) == LANGUAGES
    flat = {lang: {"": text} if isinstance(text, str) else text for lang, text in texts.items()}
    assert all(text.strip() for parts in flat.values() for text in parts.values())
    assert len({frozenset(parts) for parts in flat.values()}) == 1, "a language lacks a label, info or value"
    named = {lang: {field for _, field, *_ in Formatter().parse("".join(flat[lang].values()))} for lang in flat}
    assert len({frozenset(fields - {None}) for fields in named.values()}) == 1


def test_every_element_has_a_text(page: DrivenPage) -> None:
    assert {choice for _, choice in page.element("top.lang").choices} == LANGUAGES
    ours = {name.partition(".")[2] for name in page.manager._id_to_elem if ".tpaw_" in name}
    without = {name for name in ours - set(words.ELEMENTS) if not name.startswith("tpaw_plot_")}
    assert set(words.ELEMENTS) <= ours
    assert without == {"tpaw_accuracy", "tpaw_rows"}


def test_foreign_text_is_shown_as_it_is() -> None:
    assert words.escaped("a\x00b\u202e<c>\ud800") == "a⟨U+0000⟩b⟨U+202E⟩&lt;c&gt;⟨U+D800⟩"
    assert words.escaped('__i18n__"') == "__i18n&#95;&#95;&quot;"
    shown = words.code_block("````\n$$x$$ %%", "bash")
    assert shown.startswith("`````bash\n"), "a fence that nothing in it ends"
    assert shown.endswith("\n`````\n")
    assert "$$" not in shown
    assert "%%" not in shown
    log = "\x1b[31mred\x1b[0m\r\n 10%|#| 1/10\r 90%|#########| 9/10\r\nend\x1b]0;title\x07"
    assert words.as_shown(log) == "red\n 90%|#########| 9/10\nend"
