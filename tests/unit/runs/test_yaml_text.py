# SPDX-License-Identifier: Apache-2.0
"""A run file's text is read back as the same values, by YAML 1.1 and by LlamaFactory's reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.lf.given import read_given
from llamafactory_tpaw.runs.yaml_text import settings_text, yaml_line


VALUES = {
    "small": 5e-7,
    "exact": 1.23456789012e-5,
    "negative": -1.5e-3,
    "zero": 0.0,
    "large": 1e16,
    "huge": 180000000,
    "plain": 0.1,
    "word": "cosine",
    "path": "saves/Qwen2.5-1.5B/full/sft,./a/b",
    "switch": True,
    "switched off": False,
    "empty": "",
    "number as text": "1e-3",
    "point": ".5",
    "infinite": ".inf",
    "switch in words": "on",
    "spaces": " a b ",
    "comment": "a # b: c",
    "lines": "first\nsecond\ttab",
    "quotes": "\"'\\{}[]&*!|>%@`",
    "emoji": "😀 é 数据",
    "invisible": "a\x7fb\x85c\u2028d\ufeffe",
    "interpolation": "${oc.env:HOME}",
    "list": ["a", 1, 2.5],
    "mapping": {"a": {"b": [True, None]}},
}


def test_values_come_back(tmp_path: Path) -> None:
    text = settings_text({**VALUES, "absent": None}, "A title.")
    assert text.startswith("# A title.\n")
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_given([str(path)]) == VALUES


@pytest.mark.parametrize(
    ("value", "text"), [(1e-3, "1.0e-3"), (5e-07, "5.0e-7"), (0.05, "0.05"), (1e20, "1.0e+20"), (6.0, "6.0")]
)
def test_numbers_are_short(value: Any, text: str) -> None:
    assert yaml_line("key", value) == f"key: {text}"


def test_a_comment_stands_behind() -> None:
    assert yaml_line("key", "on", "why") == 'key: "on"  # why'
