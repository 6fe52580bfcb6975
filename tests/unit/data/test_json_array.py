# SPDX-License-Identifier: Apache-2.0
"""JSON arrays read item by item: the items and the errors of reading all of it at once, however the blocks fall."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from llamafactory_tpaw.data import json_array
from llamafactory_tpaw.data.files import parse_json
from llamafactory_tpaw.data.json_array import ArrayReader
from llamafactory_tpaw.errors import DataError


ROWS = [{"a": 'ä\n\\"]', "b": [1, {"c": None}]}, {"long": "x" * 300, "n": -1.25e-3}, {}, {"😀": "\u2028"}]


def read(content: bytes) -> list[Any]:
    return list(ArrayReader(io.BytesIO(content), "sft.json", "Correct the file.", lambda _: None))


@pytest.fixture(params=[1, 7, 64, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(json_array, "BLOCK_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("rows", [ROWS, [], [12345, -7, True, None, "a"], [[]]])
def test_items(block: int, rows: list[Any], indent: int | None) -> None:
    content = f"\n {json.dumps(rows, indent=indent, ensure_ascii=False)} \n".encode()
    assert read(content) == rows
    assert read(json.dumps(rows, indent=indent).encode()) == rows


@pytest.mark.parametrize(
    "content",
    [
        b'[{"a": 1}, {"a": 2}',
        b'[{"a": 1},\n {"a" 2}]',
        b'[{"a": 1}\n\n {"a": 2}]',
        b'[{"a": 1},]',
        b'[\n{"a": 1},\n{"a": "no end}]\n',
        b'[{"a": "\\u12"}, {"a": "' + b"x" * 100 + b'"}]',
        b'[{"a": 1}]\n[]',
        b'[{"a": tru}, {"a": ' + b"1" * 90 + b"}]",
        b'[{"a": "\x01"}]',
        b"[",
        '[\n{"a": "ä"},\n{"ä": "'.encode() + b"\xff" + b'"}\n]',
        b'[{"a": "\xc3"}]',
        b'[{"a": 1}\n, "\xc3',
        b'[{"a": ' + b"1" * 5000 + b"}]",
    ],
)
def test_errors_are_those_of_reading_it_at_once(block: int, content: bytes) -> None:
    with pytest.raises(DataError) as at_once:
        parse_json(content, "sft.json", "Correct the file.")
    with pytest.raises(DataError) as in_blocks:
        read(content)
    expected, told = str(at_once.value), str(in_blocks.value)
    if "line 1," in expected:  # whether a second line follows is not known yet
        told = told.replace(" at character", " at line 1, character")
    assert told == expected


def test_little_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "BLOCK_BYTES", 100)
    stream = io.BytesIO(json.dumps([{"number": number} for number in range(1000)]).encode())
    told: list[int] = []
    items = iter(ArrayReader(stream, "sft.json", "", told.append))
    assert next(items) == {"number": 0}
    assert stream.tell() == sum(told) == 100
    with pytest.raises(DataError, match="Expecting property name"):
        list(ArrayReader(io.BytesIO(b"[{1: 2}, " + stream.getvalue()), "sft.json", "", told.append))
    assert sum(told) == 200
    assert list(items)[-1] == {"number": 999}
    assert stream.read() == b""
