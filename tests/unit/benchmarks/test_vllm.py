# SPDX-License-Identifier: Apache-2.0
"""The benchmark of vLLM starts, says what is missing, and compares rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import vllm


def test_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert vllm.main(["--model", "m", "--template", "qwen"]) == 5
    assert "needs the program `vllm`, which is not installed here" in capsys.readouterr().err


def test_rows_are_compared(tmp_path: Path) -> None:
    (tmp_path / "tpaw").mkdir()
    for engine, rows in {"hf": [[1, 2], [3, 4, 5], [6]], "vllm": [[1, 2], [3, 9, 5], [6, 7]]}.items():
        text = "".join(json.dumps({"generated_ids": ids}) + "\n" for ids in rows)
        (tmp_path / "tpaw" / f"{engine}_greedy.jsonl").write_text(text)
    assert vllm.compare(tmp_path) == {"rows": 3, "equal": 1, "median_tokens_before_parting": 1.0}


def test_both_engines_are_asked_the_same(tmp_path: Path) -> None:
    options = vllm.parse(["--model", "m", "--template", "qwen", "--vllm", "env/vllm"])
    hf, served = (vllm.settings(options, tmp_path, engine, "greedy") for engine in vllm.ENGINES)
    differing = {key for key in {*hf, *served} if hf.get(key) != served.get(key)}
    assert differing == {"tpaw_engine", "tpaw_vllm_command", "dataset", "output_dir"}
    assert (hf["temperature"], hf["bf16"]) == (0.0, True)
    vllm.write_data(tmp_path, None, 3)
    assert len((tmp_path / "sums.jsonl").read_text().splitlines()) == 3
