# SPDX-License-Identifier: Apache-2.0
"""Settings as the text of a run file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


PLAIN_TEXT = re.compile(r"(?:[A-Za-z_]|\.{0,2}/)(?:[A-Za-z0-9 ./_,+-]*[A-Za-z0-9./_,+-])?")
# What YAML cannot have in a text or takes for the end of a line.
NEEDS_ESCAPE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def settings_text(settings: Mapping[str, Any], title: str) -> str:
    r"""Return a run file with these keys, in their order; one that is None is left out, as if it was not given.

    Args:
        settings: Keys of `llamafactory-cli train`.
        title: Its first line, a comment.
    """
    lines = [yaml_line(key, value) for key, value in settings.items() if value is not None]
    return "\n".join([f"# {title}", *lines]) + "\n"


def yaml_line(key: str, value: Any, comment: str = "") -> str:
    """Return the line of a key, so that YAML 1.1 and 1.2 readers see the same value."""
    return f"{key}: {_scalar(value)}" + (f"  # {comment}" if comment else "")


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool | list | dict):
        return _quoted(value)
    if isinstance(value, float) and math.isfinite(value):
        return _number(value)
    if isinstance(value, int | float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(value), str(value))
    text = str(value)
    if not text:
        return "''"
    return text if PLAIN_TEXT.fullmatch(text) and text.lower() not in YAML_WORDS else _quoted(text)


def _number(value: float) -> str:
    """The shortest text that is this number; YAML 1.1 wants a point before an exponent, and a sign behind it."""
    text = repr(value)
    if "e" not in text and not 0 < abs(value) < 1e-2:
        return text
    sign, digits, exponent = Decimal(text).as_tuple()
    last = len(digits) - next(place for place, digit in enumerate(reversed(digits)) if digit)
    mantissa = f"{digits[0]}.{''.join(map(str, digits[1:last])) or '0'}"
    power = exponent + len(digits) - 1
    return f"{'-' if sign else ''}{mantissa}e{power:+d}"


def _quoted(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return NEEDS_ESCAPE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
