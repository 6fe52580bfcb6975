# SPDX-License-Identifier: Apache-2.0
"""SFT sets that are missing, empty, broken, or have rows that cannot be used."""

from __future__ import annotations

import json
from typing import Any

from tests.runs import ADDITIONS

from .rows import Row
from .spoiling import COLUMNS, change_json, sft_set, write


GOOD = json.dumps(ADDITIONS[0]) + "\n"
LATIN_1 = '{"question": "Où ?", "answer": "Là."}\n'.encode("latin-1")
CUT = json.dumps(ADDITIONS[1])[:-4] + "\n"
BAD = {"tpaw_prompts": "bad"}
INFO = "data/dataset_info.json"


def with_rows(about: str, content: Any, entry: dict[str, Any] | None = None, **given: Any) -> Row:
    return Row(about, spoil=lambda: sft_set(content, **(entry or {})), generating=True, given=BAD | given)


ROWS = [
    Row("an SFT set without an entry", generating=True, given=BAD),
    Row("an SFT set whose file is not there", generating=True, given=BAD,
        spoil=lambda: change_json(INFO, bad={"file_name": "bad.jsonl", "columns": COLUMNS})),
    Row("an SFT set that is a ranking set", generating=True, given={"tpaw_prompts": "play_iter1"}),
    with_rows("an empty SFT set", ""),
    with_rows("an SFT set with a row that is cut", GOOD + CUT),
    with_rows("an SFT set that is an array and not JSON", "[{]"),
    with_rows("an SFT set in CSV with the name of JSON", "question,answer\n"),
    with_rows("an SFT set with a row that is a list", GOOD + "[1, 2]\n"),
    with_rows("an SFT set that is not UTF-8", GOOD.encode() + LATIN_1),
    with_rows("an SFT set without the response's column", [{"question": "Why?"}]),
    with_rows("SFT rows without a response", [ADDITIONS[0], {"question": "Why?", "answer": None}, ADDITIONS[2],
        {"question": "How?", "answer": None}]),
    with_rows("an SFT set without a usable row", [{"question": "Why?", "answer": ""}], tpaw_max_bad_rows=5),
    with_rows("an SFT prompt beyond `cutoff_len`", [*ADDITIONS[:3], {"question": "Why? " * 200, "answer": "So."}]),
    with_rows("an SFT set with `num_samples`", [ADDITIONS[0]], {"num_samples": 5}),
    with_rows("an SFT set in an unknown form", [ADDITIONS[0]], {"formatting": "chatml"}),
    Row("an SFT set of a script", generating=True, given=BAD,
        spoil=lambda: (write("data/bad.py", ""), change_json(INFO, bad={"script_url": "bad.py"}))),
    Row("an SFT set whose package is missing", generating=True, given=BAD,
        unlike=((r"needed: .*\. Install", "needed: <what is missing>. Install"),),
        spoil=lambda: change_json(INFO, bad={"om_hub_url": "a/b"})),
    with_rows("an SFT row with an unknown role", [{"conversations": [{"from": "moderator", "value": "Hush."}]}],
        {"formatting": "sharegpt", "columns": {"messages": "conversations"}}),
    Row("a bad SFT set and changed weights of an older player", generating=True, iteration=1, given=BAD,
        spoil=lambda: (sft_set([{"question": "Why?", "answer": ""}]),
                       change_json("saves/play_iter0/tpaw.json", result={"fingerprint": "0" * 64}))),
]  # fmt: skip
