# SPDX-License-Identifier: Apache-2.0
"""The page's texts in LlamaBoard's five languages, and foreign text made safe to show."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from typing import Any

from ..errors import visible


_TABLE = json.loads(files(__package__).joinpath("locales.json").read_text(encoding="utf-8"))
# Element -> language -> properties of the component, as LlamaBoard's own table has it.
ELEMENTS: dict[str, dict[str, dict[str, str]]] = _TABLE["elements"]
MESSAGES: dict[str, dict[str, str]] = _TABLE["messages"]
FALLBACK = "en"

# What a terminal obeys: colours, titles, the cursor.
TERMINAL = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-_])")
BACKTICKS = re.compile(r"`+")
# LlamaBoard's Markdown takes what stands between two of them for a formula, in code, too.
FORMULA = re.compile(r"\$(?=\$)|%(?=%)")
ZERO_WIDTH = "\u200b"


def say(name: str, lang: str | None, /, **values: object) -> str:
    """Return message `name` in a language of the page, with `values` filled in."""
    return MESSAGES[name][lang or FALLBACK].format(**values)


def escaped(text: object) -> str:
    """Return a text as HTML that shows it as it is: also in an attribute, and to Gradio's translation of texts."""
    return html.escape(visible(str(text))).replace("__i18n__", "__i18n&#95;&#95;")


def code_block(text: str, language: str = "") -> str:
    """Fence a text for LlamaBoard's Markdown so that no fence, formula or tag in it counts."""
    if not text.strip():
        return ""
    fence = "`" * max(3, 1 + max(map(len, BACKTICKS.findall(text)), default=0))
    return f"{fence}{language}\n{FORMULA.sub(lambda sign: sign.group() + ZERO_WIDTH, text)}\n{fence}\n"


def listed(problems: list[str]) -> str:
    """Return messages as HTML for LlamaBoard's output box and its pop-ups."""
    return "<br>".join(FORMULA.sub(lambda sign: sign.group() + ZERO_WIDTH, escaped(problem)) for problem in problems)


def as_shown(log: str) -> str:
    """Return what a terminal would show of a log: of a line that was overwritten the last state, no colours."""
    lines = TERMINAL.sub("", log).replace("\r\n", "\n").split("\n")
    return visible("\n".join(next((part for part in line.split("\r")[::-1] if part.strip()), "") for line in lines))


def properties(name: str, lang: str = FALLBACK) -> dict[str, Any]:
    """Return label, info or value of an element, to build it with."""
    return dict(ELEMENTS.get(name, {}).get(lang, {}))
