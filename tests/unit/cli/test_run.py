# SPDX-License-Identifier: Apache-2.0
"""What `llamafactory-tpaw run` prints, around a loop that is given."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from llamafactory_tpaw import cli
from llamafactory_tpaw.cli.output import duration
from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.runs import loop
from llamafactory_tpaw.runs.loop import Item


SUMMARY = {
    "result": "theta_1",
    "seconds": {"generate": 61.0, "score": 0.0, "train": 3725.0},
    "counts": {"train_triplets": 50000, "generated_tokens": 1234567},
    "loss": 0.51239,
    "target_reward": -0.25,
    "margin": 1.5,
}


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafactory_tpaw.hook.bootstrap.activate", lambda: None)
    monkeypatch.setattr(loop, "_result", lambda folder: SUMMARY)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs the command; each run file does what its text says."""

    def read(files: list[str], overrides: list[str]) -> list[Item]:
        given = {"stage": "tpaw", "tpaw_iteration": 0}
        return [Item(file, given | {"output_dir": f"saves/{file[0]}"}) for file in files]

    def call(effects: dict[str, Any], *words: str) -> int:
        def play(items: list[Item], tell: Callable[[int, str], None], to_stderr: bool) -> int:
            for index, item in enumerate(items):
                effect = effects.get(item.file, "finished")
                tell(index, "begins.")
                item.seconds = 12.34
                if isinstance(effect, BaseException):
                    item.status = "interrupted"
                    raise effect
                item.status = effect
                if effect == "failed":
                    item.exit_code = 3
                    return 3
                tell(index, f"{effect}.")
            return 0

        monkeypatch.setattr(loop, "read_items", read)
        monkeypatch.setattr(loop, "play", play)
        return cli.main(["run", *words])

    return call


def test_status_lines_and_summary(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run({"a.yaml": "finished", "b.yaml": "skipped"}, "a.yaml", "seed=1", "b.yaml") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "[1/2] a.yaml: begins.",
        "[1/2] a.yaml: finished. (12.3 s)",
        "[2/2] b.yaml: begins.",
        "[2/2] b.yaml: skipped. (12.3 s)",
        "run file  status    result   triplets  sampled tokens  generate  score  train    loss  target reward  margin",
        "a.yaml    finished  theta_1    50,000       1,234,567     1m01s      -  1h02m  0.5124        -0.2500  1.5000",
        "b.yaml    skipped   theta_1    50,000       1,234,567     1m01s      -  1h02m  0.5124        -0.2500  1.5000",
    ]
    assert err == ""


def test_failure_names_file_and_the_way_on(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a.yaml", "b b.yaml", "c.yaml", "seed=1"]
    assert run({"a.yaml": "finished", "b b.yaml": "failed"}, *words) == 3
    out, err = capsys.readouterr()
    assert err == (
        "llamafactory-tpaw: [2/3] b b.yaml: failed after 12.3 s with exit code 3.\n"
        "llamafactory-tpaw: 1 of 3 run files are done. What is done is kept; once this is mended, the same command "
        "continues: llamafactory-tpaw run a.yaml 'b b.yaml' c.yaml seed=1\n"
    )
    assert [re.split("  +", line)[1] for line in out.splitlines()[-3:]] == ["finished", "failed", "waiting"]


def test_interruption_names_file_and_the_way_on(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run({"a.yaml": "skipped", "b.yaml": KeyboardInterrupt()}, "a.yaml", "b.yaml") == 130
    out, err = capsys.readouterr()
    assert err == (
        "llamafactory-tpaw: [2/2] b.yaml: interrupted after 12.3 s.\n"
        "llamafactory-tpaw: 1 of 2 run files are done.\n"
        "llamafactory-tpaw: interrupted (Ctrl-C). What is done is kept: the same command continues.\n"
    )
    assert "interrupted" in out.splitlines()[-1]


def test_json_is_all_of_stdout(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run({"a.yaml": "failed"}, "--json", "a.yaml", "b.yaml") == 3
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [(row["file"], row["status"]) for row in rows] == [("a.yaml", "failed"), ("b.yaml", "waiting")]
    assert rows[0]["exit_code"] == 3
    assert "[1/2] a.yaml: begins." in err
    assert "continues: llamafactory-tpaw run a.yaml b.yaml --json\n" in err


def test_the_names_of_run_files_are_no_markup(
    run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    assert run({"[b]a.yaml": "finished"}, "[b]a.yaml") == 0
    header, row = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()[-2:]
    assert header.split()[:2] == ["run", "file"]
    assert row.split()[:3] == ["[b]a.yaml", "finished", "theta_1"]


def test_without_a_run_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "seed=1"]) == ConfigError.exit_code
    assert "No run file is given, only seed=1." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.97, "1m00s"), (3599.6, "1h00m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
