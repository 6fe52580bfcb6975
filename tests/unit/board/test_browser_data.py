# SPDX-License-Identifier: Apache-2.0
"""Triplets page by page: filters, counts, damaged rows, files that change, and memory that does not grow with them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.board.browser_data import Counts, Filter, TripletFile, open_triplets
from llamafactory_tpaw.board.places import Places
from llamafactory_tpaw.data.source import triplet_entry
from llamafactory_tpaw.data.triplets import TripletRow
from llamafactory_tpaw.errors import ConfigError, DataError
from llamafactory_tpaw.generation.partial import NewRow, PartialFile


# Number 3 equals its target, 4 has its text but ran into the limit, 5 ran into the limit.
KINDS = {3: ("answer 3", "stop"), 4: ("answer 4", "length"), 5: ("half an", "length")}


def line(number: int, **changes: Any) -> str:
    generated, reason = KINDS.get(number, (f"reply {number}\r\nin lines", "stop"))
    row = TripletRow(
        id=f"{number:016x}-0",
        iteration=1,
        messages=[{"role": "user", "content": f"question {number}"}],
        system="",
        tools="",
        target={"role": "assistant", "content": f"answer {number}"},
        generated=generated,
        finish_reason=reason,
        generated_ids=[number],
    )
    return json.dumps(json.loads(row.to_json()) | changes, ensure_ascii=False)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.chdir(tmp_path)
    Path("data/tpaw").mkdir(parents=True)
    save({"play_iter1": triplet_entry("play_iter1")})
    Path("data/tpaw/play_iter1.jsonl").write_text("".join(line(number) + "\n" for number in range(1, 13)))
    return Places()


def save(info: dict[str, Any]) -> None:
    Path("data/dataset_info.json").write_text(json.dumps(info))


def rows_of(file: TripletFile, *wanted: Any) -> list[int]:
    return [row.row for row in file.page(1, 100, Filter(*wanted)).rows]


def test_pages(places: Places) -> None:
    file = open_triplets(places, "play_iter1")
    page = file.page(2, 5)
    assert [row.row for row in page.rows] == [6, 7, 8, 9, 10]
    assert (page.number, page.pages, page.matching) == (2, 3, 12)
    assert [row.row for row in file.page(99, 5).rows] == [11, 12]
    row = page.rows[0]
    assert (row.prompt, row.target, row.generated) == ("question 6", "answer 6", "reply 6\r\nin lines")
    assert (row.iteration, row.equal, row.truncated, row.sample, row.problem) == (1, False, False, 0, "")


def test_filters(places: Places) -> None:
    file = open_triplets(places, "play_iter1")
    assert rows_of(file, True) == [3]
    assert rows_of(file, None, True) == [4, 5]
    assert rows_of(file, False, False) == [1, 2, *range(6, 13)]
    assert rows_of(file, True, True) == []
    assert rows_of(file, None, None, "QUESTION 1") == [1, 10, 11, 12]
    assert rows_of(file, None, None, "answer 12") == [12]
    assert rows_of(file, None, True, "half") == [5]
    assert file.page(3, 5, Filter(equal=True)).number == 1
    assert file.counts() == Counts(12, 1, 2, 0)


def test_conversations_are_written_out(places: Places) -> None:
    messages = [("human", "Hi"), ("gpt", "Hello"), ("human", "数据?")]
    conversations = [{"from": tag, "value": text} for tag, text in messages]
    path = Path("data/tpaw/play_iter1.jsonl")
    path.write_text(line(1, conversations=conversations, system="Be kind.", tools="[]"), encoding="utf-8")
    file = open_triplets(places, "play_iter1")
    text = "[system]\nBe kind.\n\n[tools]\n[]\n\n[user]\nHi\n\n[assistant]\nHello\n\n[user]\n数据?"
    assert file.page().rows[0].prompt == text
    assert rows_of(file, None, None, "数据") == [1]


def test_texts_that_look_like_the_end_of_a_row(places: Places) -> None:
    text = 'so , "generated_ids": [1, 2]}'
    rows = [
        line(1, generated_ids=[], system=text),
        line(2, rejected={"from": "gpt", "value": text}, generated_ids=None),
    ]
    rows.append(json.dumps(json.loads(line(7)), indent=None, separators=(",", ":")))
    Path("data/tpaw/play_iter1.jsonl").write_text("\n".join(rows))
    views = open_triplets(places, "play_iter1").page().rows
    assert [view.problem for view in views] == ["", "", ""]
    assert views[0].prompt.startswith(f"[system]\n{text}")
    assert views[1].generated == text
    assert views[2].target == "answer 7"


def test_a_damaged_row_hides_no_other(places: Places) -> None:
    lines = [line(3), '{"id": 1', line(5), "[]", line(6, chosen={"from": "gpt", "value": 7}), '{"id": "\xff"}']
    Path("data/tpaw/play_iter1.jsonl").write_text("\n".join(lines), encoding="latin-1")
    file = open_triplets(places, "play_iter1")
    assert file.counts() == Counts(6, 1, 1, 4)
    rows = file.page().rows
    assert [bool(row.problem) for row in rows] == [False, True, False, True, True, True]
    assert rows[1].problem.startswith("data/tpaw/play_iter1.jsonl, row 2 is not valid JSON")
    assert rows_of(file, False) == [3]


def test_an_empty_file_has_one_page(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    page = TripletFile(path).page()
    assert (page.rows, page.number, page.pages, page.matching) == ([], 1, 1, 0)


def test_a_file_stays_open_until_it_changes(places: Places) -> None:
    first = open_triplets(places, "play_iter1")
    assert open_triplets(places, "play_iter1") is first
    assert first.page().matching == 12
    path = Path("data/tpaw/play_iter1.jsonl")
    path.write_text(path.read_text() + line(13) + "\n")
    assert open_triplets(places, "play_iter1").page().matching == 13


def commit(path: Path, file: PartialFile | None = None, *numbers: int) -> PartialFile:
    """A half-done file with these rows more."""
    file = file or PartialFile(path, {"round": 1}, 12).__enter__()
    file.append([NewRow(number, line(number), {}) for number in numbers], 1.0)
    return file


def test_rows_are_shown_while_they_are_generated(places: Places) -> None:
    path = Path("data/tpaw/play_iter1.jsonl")
    path.unlink()
    half = path.with_name("play_iter1.jsonl.partial")
    writer = commit(half, None, 7, 3)
    assert [row.generated for row in open_triplets(places, "play_iter1").page().rows] == [
        "reply 7\r\nin lines",
        "answer 3",
    ]
    commit(half, writer, 5)
    with half.open("ab") as stream:
        stream.write(line(8).encode() + b"\n" + line(9).encode()[:40])
    file = open_triplets(places, "play_iter1")
    assert file.counts() == Counts(3, 1, 1, 0)
    assert [row.problem for row in file.page().rows] == ["", "", ""]
    assert rows_of(file, True) == [2]
    writer.__exit__(None, None, None)


@pytest.mark.parametrize("content", [b"", b"{", b'{"identity": 1}\n', b'{"commit": [0]', b"\xff\n\n\n"])
def test_half_done_file_without_a_commit_has_no_rows(places: Places, content: bytes) -> None:
    path = Path("data/tpaw/play_iter1.jsonl")
    path.unlink()
    path.with_name("play_iter1.jsonl.partial").write_bytes(content)
    file = open_triplets(places, "play_iter1")
    assert (file.page().rows, file.counts().rows) == ([], 0)


def test_half_done_file_is_followed_no_more_than_a_whole_one(places: Places, tmp_path: Path) -> None:
    path = Path("data/tpaw/play_iter1.jsonl")
    path.unlink()
    Path("secret").write_text("{}\n" + line(1) + '\n{"commit": [0]}\n')
    path.with_name("play_iter1.jsonl.partial").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match="not below saves or data or yaml"):
        open_triplets(places, "play_iter1")


def test_what_is_no_triplet_file_is_refused(places: Places) -> None:
    foreign = {"ranking": True, "columns": {}}
    Path("data/other.jsonl").write_text('{"a": 1}\n')
    Path("secret.jsonl").write_text(line(1))
    Path("data/link.jsonl").symlink_to(Path("secret.jsonl").absolute())
    save(
        {
            "other": {"file_name": "other.jsonl", **foreign},
            "hub": {"hf_hub_url": "org/set", **foreign},
            "sft": {"file_name": "tpaw/play_iter1.jsonl"},
            "outside": {"file_name": "../secret.jsonl", **foreign},
            "link": {"file_name": "link.jsonl", **foreign},
            "later": triplet_entry("later"),
        }
    )
    for name in ("sft", "hub", "none", None, ["other"], "tpaw/play_iter1.jsonl"):
        with pytest.raises(ConfigError, match=r"no entry of dataset_info\.json"):
            open_triplets(places, name)
    for name in ("outside", "link"):
        with pytest.raises(ConfigError, match="not below saves or data or yaml"):
            open_triplets(places, name)
    with pytest.raises(DataError, match="holds no triplets"):
        open_triplets(places, "other")
    with pytest.raises(DataError, match="not there yet"):
        open_triplets(places, "later")


@pytest.mark.parametrize(("number", "size"), [(0, 10), (-1, 10), (1, 0), (1, 201), ("1", 10), (True, 10), (1, 2.0)])
def test_wrong_numbers_are_refused(places: Places, number: Any, size: Any) -> None:
    with pytest.raises(ConfigError, match="must be a whole number"):
        open_triplets(places, "play_iter1").page(number, size)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    row = line(1, system="word " * 2000) + "\n"
    with path.open("w") as stream:
        for _ in range(3000):
            stream.write(row)
    file = TripletFile(path)
    tracemalloc.start()
    assert file.page(300, 10).rows[-1].row == 3000
    assert file.counts().rows == 3000
    assert file.page(1, 10, Filter(text="nowhere")).matching == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 2.5e7
    assert peak < 1.2e7
