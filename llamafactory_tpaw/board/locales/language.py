# SPDX-License-Identifier: Apache-2.0
"""The languages of the page, and how an element's or a message's texts are kept."""

from __future__ import annotations

from typing import Any


# LlamaBoard's own; English is the one that every other falls back to.
LANGUAGES = ("en", "ru", "zh", "ko", "ja")
FALLBACK = "en"


class Translations(dict[str, Any]):
    """What something is in each language. A language that is not here gives the English text, not an error."""

    def __missing__(self, language: str) -> Any:
        if language == FALLBACK:
            raise KeyError(language)
        return self[FALLBACK]


def labelled(**texts: tuple[str, str]) -> Translations:
    """Label and info of an element, by language."""
    return Translations({lang: {"label": label, "info": info} for lang, (label, info) in texts.items()})


def titled(**texts: str) -> Translations:
    """Label of an element without an info: a box, an accordion, a chart."""
    return Translations({lang: {"label": text} for lang, text in texts.items()})


def button(**texts: str) -> Translations:
    """Text on a button, by language."""
    return Translations({lang: {"value": text} for lang, text in texts.items()})


def hinted(**texts: tuple[str, str]) -> Translations:
    """Label and placeholder of a text box, by language."""
    return Translations({lang: {"label": label, "placeholder": hint} for lang, (label, hint) in texts.items()})


def said(**texts: str) -> Translations:
    """A message or a help text, by language."""
    return Translations(texts)
