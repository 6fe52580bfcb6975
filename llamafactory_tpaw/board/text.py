# SPDX-License-Identifier: Apache-2.0
"""Text of a model or a user, made safe to show: nothing in it is a tag, and what cannot be seen is written out."""

from __future__ import annotations

import html
import re


# Control characters but tab and newline, halves of characters, and what turns the direction of the text around it.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]"
)


def plain(text: object) -> str:
    r"""Return a text without characters that break a page or hide something.

    Args:
        text: Anything; None is empty.

    Returns:
        Text that can be encoded. Zero bytes and other control characters are shown as U+2400 and the like, marks of
        direction as their code, and a lone half of a character as U+FFFD.
    """
    return UNSEEN.sub(_shown, "" if text is None else str(text).replace("\r\n", "\n"))


def escaped(text: object) -> str:
    """Return a text as HTML that shows it as it is: also in an attribute in quotes, and to Gradio's translation."""
    return html.escape(plain(text), quote=True).replace("__i18n__", "__i18n&#95;&#95;")


def _shown(found: re.Match[str]) -> str:
    code = ord(found.group())
    if code < 0x20 or code == 0x7F:
        return chr(0x2421 if code == 0x7F else 0x2400 + code)
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"\u27e8U+{code:04X}\u27e9"
