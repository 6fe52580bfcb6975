# SPDX-License-Identifier: Apache-2.0
"""Pages of triplets: the rows of a file in its order, each text as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.board.triplets import rounds, triplets_page
from llamafactory_tpaw.data.triplets import TripletRow
from tests.board.hostile import TEXTS, Seen


def row(number: int, text: str = "", **changed: Any) -> str:
    fields: dict[str, Any] = {
        "id": f"{number:016x}-0",
        "iteration": 1,
        "messages": [{"role": "user", "content": f"prompt {number} {text}"}],
        "system": "",
        "tools": "",
        "target": {"role": "assistant", "content": f"target {number} {text}"},
        "generated": f"generated {number} {text}",
        "finish_reason": "stop",
        "generated_ids": [number],
    }
    return TripletRow(**fields | changed).to_json() + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tpaw").mkdir()
    (tmp_path / "tpaw" / "play_iter2.jsonl").write_text("".join(map(row, range(1, 26))))
    return tmp_path


def read(folder: Path, name: str, number: int = 1, lang: str = "en") -> tuple[Seen, int, int]:
    shown, number, pages = triplets_page(str(folder), name, number, lang)
    return Seen(shown), number, pages


def test_pages_in_the_order_of_the_file(folder: Path) -> None:
    first, number, pages = read(folder, "play_iter2.jsonl")
    assert (number, pages) == (1, 3)
    assert first.cells[:3] == ["prompt 1 ", "target 1 ", "generated 1 "]
    assert len(first.cells) == 30
    last, number, _ = read(folder, "play_iter2.jsonl", 99)
    assert (number, last.cells[0], len(last.cells)) == (3, "prompt 21 ", 15)
    assert "由 θ_1 生成" in read(folder, "play_iter2.jsonl", lang="zh")[0].text


def test_equal_and_truncated_responses_are_marked(folder: Path) -> None:
    path = folder / "tpaw" / "play_iter0.jsonl"
    path.write_text(row(1, generated="target 1 ") + row(2, generated="target 2 ", finish_reason="length"))
    text = read(folder, path.name)[0].text
    assert (text.count("equal to the target"), text.count("cut at the length limit")) == (1, 1)


def test_all_messages_of_a_conversation(folder: Path) -> None:
    messages = [{"role": role, "content": role[:3]} for role in ("user", "assistant", "user")]
    path = folder / "tpaw" / "play_iter0.jsonl"
    path.write_text(row(1, messages=messages, system="be brief"))
    prompt = read(folder, path.name)[0].cells[0]
    assert prompt == "[system]\nbe brief\n\n[user]\nuse\n\n[assistant]\nass\n\n[user]\nuse"


def test_half_done_file_shows_what_there_is(folder: Path) -> None:
    path = folder / "tpaw" / "play_iter10.jsonl.partial"
    path.write_text('{"engine": "hf"}\n' + row(1) + '{"commit": [0], "crc": 1}\n' + row(2)[:50])
    assert rounds(str(folder)) == ["play_iter2.jsonl", path.name]
    shown, _, pages = read(folder, path.name)
    assert (shown.cells, pages) == (["prompt 1 ", "target 1 ", "generated 1 "], 1)


def test_damaged_rows_hide_no_other(folder: Path) -> None:
    path = folder / "tpaw" / "play_iter0.jsonl"
    path.write_text('{"conversations": 1\n{"conversations": []}\n' + row(3))
    shown = read(folder, path.name)[0]
    assert "prompt 3 " in shown.cells
    assert "generate it again" in shown.text


@pytest.mark.parametrize("name", ["../secret.jsonl", "/etc/passwd", "play_iter2.jsonl/../../secret.jsonl", None, ""])
def test_nothing_else_is_read(folder: Path, name: Any) -> None:
    (folder / "secret.jsonl").write_text(row(1, "secret"))
    shown, number, pages = triplets_page(str(folder), name, 1, "en")
    assert "secret" not in shown
    assert (number, pages) == (1, 1)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_is_shown_and_is_no_markup(folder: Path, text: str) -> None:
    path = folder / "tpaw" / "play_iter0.jsonl"
    path.write_text(row(1, text))
    shown = read(folder, path.name)[0]
    assert shown.cells == [f"{kind} 1 {text}" for kind in ("prompt", "target", "generated")]
    assert set(shown.tags) <= {"style", "div"}
