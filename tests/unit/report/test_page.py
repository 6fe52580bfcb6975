# SPDX-License-Identifier: Apache-2.0
"""The page on finished runs: what was logged and measured is on it at its place, escaped, and nothing is fetched."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.report import plots
from llamafactory_tpaw.report.collect import Accuracy, Method, collect_method, compare, read_accuracies, read_run
from llamafactory_tpaw.report.render import Page, draw_pictures, render_page, write_report
from llamafactory_tpaw.team.manifest import Manifest, write_manifest
from tests.board.hostile import Seen


PNG = b"\x89PNG\r\n\x1a\n"
# Checkpoint, which problems it solved, and the interval.
ACCURACIES = {
    "sft": ("1100000000", (0.06, 0.51)),
    "iter0": ("1110000000", (0.11, 0.61)),
    "iter1": ("1111111000", (0.39, 0.89)),
    "more/checkpoint-12": ("1111000000", (0.17, 0.69)),
    "more/checkpoint-30": ("1111100000", (0.24, 0.76)),
    "more": ("0011100000", (0.11, 0.61)),
}


def write_state(folder: Path, steps: int, rows: list[dict[str, float]]) -> None:
    totals = {"step": steps, "train_runtime": 8.0, "train_loss": 1.0}
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": steps, "log_history": [*rows, totals]}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def write_iteration(folder: Path, iteration: int, steps: int) -> None:
    names = [f"theta_{index}" for index in range(iteration + 1)]
    rows = []
    for step in range(5, steps + 1, 5):
        row = {"step": step, "loss": 0.7, "weights/target_eta_fraction": 0.9, "logps/target": -4.0}
        row |= {"rewards/target": 0.01 * step, "rewards/generated": -0.5, "rewards/margin": 0.01 * step + 0.5}
        row |= {f"weights/player/{name}": 1 / len(names) for name in names}
        rows.append(row)
    write_state(folder, steps, rows)
    players = [{"name": name, "path": name, "fingerprint": "f" * 64} for name in names]
    manifest = Manifest(iteration, "finished", "tpaw", players[-1], players, [], "t", {"name": "default"}, {})
    manifest.counts, manifest.seconds = {"train_triplets": 320}, {"generate": 3.0, "score": 1.0, "train": 8.0}
    write_manifest(folder, manifest)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two iterations of self-play and one plain training, with the accuracies of their checkpoints."""
    write_iteration(tmp_path / "iter0", 0, 10)
    write_iteration(tmp_path / "iter1", 1, 20)
    write_state(tmp_path / "more", 30, [{"step": 10, "loss": 0.2}])
    rows = [
        {"checkpoint": str(tmp_path / name), "n": 10, "correct": hits.count("1"), "interval": ends, "hits": hits}
        for name, (hits, ends) in ACCURACIES.items()
    ]
    (tmp_path / "accuracy.json").write_text(json.dumps(rows))
    return tmp_path


def methods(root: Path) -> tuple[Method, Method]:
    accuracies = read_accuracies(root / "accuracy.json")
    team = collect_method("team", "a note", root / "sft", [root / "iter0", root / "iter1"], accuracies)
    return team, collect_method("plain", "a note", root / "sft", [root / "more"], accuracies)


def page_of(root: Path, **changes: Any) -> Page:
    texts = {"title": "A page", "introduction": ("First.",), "what": "right answers", "noise": ("One seed.",)}
    return Page(**{**texts, "methods": methods(root), **changes})


def test_numbers_are_on_the_page_and_nothing_is_fetched(root: Path) -> None:
    page = page_of(root)
    html = render_page(page, draw_pictures(page))
    reader = Seen(html)
    for text in (
        "team theta_2 30 7 of 10 70.0 % 39.0 % to 89.0 %",
        "plain step 12 12 4 of 10 40.0 % 17.0 % to 69.0 %",
        "team (20.0 % → 70.0 %, 30 optimizer steps, 24 seconds): a note",
        "team theta_1 10 320 generate 3, score 1, train 8",
        "plain more 30 – train 8",
        "theta_0, its start +50.0 +19.0 to +81.0 plain, end +40.0",
    ):
        assert text in reader.text
    assert not {"script", "link", "iframe", "object", "a"} & set(reader.tags)
    sources = [value for name, value in reader.attributes if name in ("src", "href", "srcset")]
    assert [value[:22] for value in sources] == ["data:image/png;base64,"] * 3
    assert not re.search(r"https?://|@import|url\(", html)


def test_texts_are_escaped(root: Path) -> None:
    evil = '<img src=x onerror="alert(1)">&'
    marked = tuple(replace(method, label=evil, note=evil) for method in methods(root))
    html = render_page(
        page_of(root, title=evil, introduction=(evil,), what=evil, noise=(evil,), methods=marked), {"accuracy": PNG}
    )
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;") > 8
    assert Seen(html).tags.count("img") == 1


def test_pictures_are_inside_and_beside(root: Path) -> None:
    path = write_report(page_of(root), root / "report")
    inside = {base64.b64decode(text) for text in re.findall(r"base64,([A-Za-z0-9+/=]+)", path.read_text())}
    beside = {file.stem: file.read_bytes() for file in path.parent.glob("*.png")}
    assert set(beside) == {"accuracy", "rewards", "weights"}
    assert inside == set(beside.values())


def test_labels_with_dollars_and_values_that_are_not_finite(root: Path) -> None:
    team, _ = methods(root)
    row = {**team.runs[0].logs[0], "rewards/target": math.nan, "rewards/margin": math.inf}
    broken = replace(team, label="$x_{", runs=(replace(team.runs[0], logs=(row,)), team.runs[1]))
    assert plots.draw_rewards([broken]).startswith(PNG)
    assert plots.draw_accuracy([broken], "50 $ {").startswith(PNG)


def test_series_and_points_run_over_iterations(root: Path) -> None:
    team, plain = methods(root)
    first, second = team.series("rewards/target")
    assert first == [(5, 0.05), (10, 0.1)]
    assert second == [(15, 0.05), (20, 0.1), (25, pytest.approx(0.15)), (30, 0.2)]
    assert team.series("weights/player/theta_1") == [[], [(step, 0.5) for step in (15, 20, 25, 30)]]
    assert plain.series("rewards/target") == []
    points = [(point.label, point.steps, point.accuracy.correct) for point in team.points]
    assert points == [("theta_0", 0, 2), ("theta_1", 10, 3), ("theta_2", 30, 7)]
    # The checkpoint of the last step is the result itself, so it is no separate point.
    assert [(point.label, point.steps) for point in plain.points] == [("theta_0", 0), ("step 12", 12), ("end", 30)]


def test_compare_counts_pairs() -> None:
    """3 gained, 1 lost of 10: difference 0.2, its standard error sqrt((0.4 - 0.04) / 10) = 0.1897."""
    difference = compare(Accuracy(10, 4, (0, 1), "1111000000"), Accuracy(10, 2, (0, 1), "1000100000"))
    assert difference.share == pytest.approx(0.2)
    assert difference.interval == pytest.approx((0.2 - 1.959964 * 0.189737, 0.2 + 1.959964 * 0.189737), abs=1e-5)
    assert compare(Accuracy(4, 2, (0, 1), "1100"), Accuracy(3, 2, (0, 1), "110")) is None, "other problems"


def test_what_is_missing_or_damaged_is_named(root: Path) -> None:
    shutil.rmtree(root / "iter1")
    with pytest.raises(DataError, match=r"iter1.trainer_state.json does not exist"):
        read_run(root / "iter1")
    with pytest.raises(DataError, match=r"No accuracy of .*sft, from which team started"):
        collect_method("team", "a note", root / "sft", [root / "iter0"], {})
    (root / "accuracy.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"accuracy.json is no file of accuracies"):
        read_accuracies(root / "accuracy.json")
