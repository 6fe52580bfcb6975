# SPDX-License-Identifier: Apache-2.0
"""The page in LlamaBoard's five languages: labels, infos and hover help of the stage's fields change with it."""

from __future__ import annotations

import re

import pytest

from llamafactory_tpaw.board.locales import HELP, LANGUAGES, LOCALES, MESSAGES
from llamafactory_tpaw.board.locales.tabs import TABS
from tests.board.browsing import Board


pytestmark = pytest.mark.integration
# LlamaBoard's own word for its button, to see that the rest of the page goes along.
START = {"en": "Start", "ru": "Начать", "zh": "开始", "ko": "시작", "ja": "開始"}
ACCORDION = "tpaw_tab"
FIELDS = [name for name in LOCALES if name not in TABS and "info" in LOCALES[name]["en"]]


def test_every_field_changes_its_language(board: Board) -> None:
    board.fill("Stage", "TPAW")
    for lang in [*LANGUAGES[1:], LANGUAGES[0]]:
        board.choose_language(lang)
        board.button(START[lang]).first.wait_for()
        board.unfold(LOCALES[ACCORDION][lang]["label"])
        wrong = {}
        for name in FIELDS:
            shown, texts = board.field(name).inner_text(), LOCALES[name][lang]
            help_shown = board.page.locator(f"#{name}").get_attribute("title")
            if texts["label"] not in shown or texts["info"] not in shown or help_shown != HELP[name][lang]:
                wrong[name] = (shown, help_shown)
        assert wrong == {}, lang
        board.picture(f"language-{lang}")
    assert board.value("Stage") == "TPAW"


def test_new_tabs_change_their_language(board: Board) -> None:
    for lang in [*LANGUAGES[1:], LANGUAGES[0]]:
        board.choose_language(lang)
        for name in ("tpaw_browser_tab", "tpaw_chat_tab"):
            board.tab(LOCALES[name][lang]["label"]).click()
            fields = [field for field in TABS if field.startswith(name.removesuffix("tab")) and field != name]
            for field in fields:
                texts = LOCALES[field][lang]
                board.page.locator(f"#{field}").filter(has_text=texts.get("label") or texts["value"]).wait_for()
            board.picture(f"{name}-{lang}")
        either = (re.escape(MESSAGES[name][lang]) for name in ("chat_unloaded", "chat_choose"))
        board.until_value("tpaw_chat_status", re.compile("|".join(either)))
