# SPDX-License-Identifier: Apache-2.0
"""The page on finished runs and studies: what was logged and measured is on it, escaped, and nothing is fetched."""

from __future__ import annotations

import base64
import json
import math
import re
from pathlib import Path

import pytest

from llamafactory_tpaw.cli import main
from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.report import page, plots
from llamafactory_tpaw.report.collect import Method, Part, Point, collect
from llamafactory_tpaw.report.evaluate import Evaluation, write_evaluations
from llamafactory_tpaw.report.page import blocks_of, claims_of
from llamafactory_tpaw.report.render import as_html
from llamafactory_tpaw.report.statistics import mean_interval
from llamafactory_tpaw.team.manifest import read_manifest
from tests.board.hostile import Seen
from tests.unit.report import studied
from tests.unit.report.played import play_three
from tests.unit.report.studied import write_results


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_results(tmp_path / "study" / "results").parent


@pytest.fixture
def saves(elsewhere: Path) -> Path:
    """Three iterations of self-play, and a plain training, with logs; all but one measured."""
    write_state(Path("saves/sft"), 5)
    for number, folder in enumerate(play_three()):
        write_state(folder, 10 * number or 5)
        write_scores(folder, "1" * (2 + number) + "0" * (8 - number))
    write_state(Path("saves/more/checkpoint-12"), 12)
    write_scores(Path("saves/more/checkpoint-12"), "1111000000")
    write_state(Path("saves/more"), 30)
    Path("saves/more/README.md").write_text("- learning_rate: 1\n- seed: 42\n")
    return Path("saves")


def write_state(folder: Path, steps: int) -> None:
    rows = [{"step": step, "loss": 0.7, "rewards/target": step / 10} for step in range(5, steps + 1, 5)]
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": steps, "epoch": 2.0, "log_history": [*rows, {"step": steps, "train_runtime": 8.0}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def write_scores(folder: Path, items: str) -> None:
    value = items.count("1") / len(items)
    about = ({}, "1.0", 0, None, "hf", "float32", None, "0.4.13", 1.0)
    manifest = read_manifest(folder) or read_manifest("saves/iter0")
    fingerprint = (manifest.result if manifest.iteration or folder.name == "iter0" else manifest.policy)["fingerprint"]
    write_evaluations(
        folder, fingerprint, {"words": Evaluation("exact_match,none", value, 0.1, len(items), items, *about)}
    )


def test_output_folders_become_methods_with_their_points(saves: Path) -> None:
    team, plain = collect([saves])
    part = team.parts[0]
    assert [(point.name, point.steps, point.triplets) for point in part.points] == [
        ("theta_0", 0, None),
        ("theta_1", 10, None),
        ("theta_2", 30, None),
        ("theta_3", 60, None),
    ]
    assert [point.evaluations["words"]["value"] for point in part.points] == [0.2, 0.3, 0.4, 0.5]
    assert part.points[2].round == {"mean_tokens": 10.0}
    assert part.examples == [{"prompt": "2 + 2?", "target": "4", "generated": "5"}]
    assert part.points[2].seconds == {"generate": 1.0, "score": 2.0, "train": 3.0}
    series = part.series("rewards/target")
    assert series[:5] == [(5, 0.5), (10, 1.0), (10.5, pytest.approx(math.nan, nan_ok=True)), (15, 0.5), (20, 1.0)]
    assert part.series("round/mean_tokens") == [(0, 10.0), (1, 10.0), (2, 10.0)]
    assert (plain.label, [(point.name, point.steps) for point in plain.parts[0].points]) == (
        "more",
        [("step 12", 12), ("step 30", 30)],
    )
    assert plain.parts[0].seed == 42


def test_numbers_of_a_study_are_on_the_page_and_nothing_is_fetched(study: Path, tmp_path: Path) -> None:
    """TPAW minus SFT is 4, 2, 2, 3, 3, 2 of ten, minus its start 5, 3, 4, 6, 5, 5: p is 2/2⁶, Holm doubles it."""
    assert main(["report", str(study), "--out", str(tmp_path / "out")]) == 0
    html, markdown = ((tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("index.html", "report.md"))
    seen = Seen(html)
    for text in (
        "words",
        "Not shown to be gain or loss, on words for TPAW, theta_2: +46.7",
        "TPAW theta_2 20 71.7 ",
        "70.0, 60.0, 50.0, 80.0, 90.0, 80.0",
        "words TPAW, theta_2, minus SFT_STEPS, theta_2 6 +26.7",
        "0.031 0.062 3.27 11.71 not shown",
        "TPAW theta_1 10 100 – train 10, score 1 – –",
        "torch 2.9",
        "TPAW seed 0 or 1 or 2 or 3 or 4 or 5, tpaw_eta 6",
    ):
        assert text in seen.text
    assert "search" not in seen.text
    assert not {"script", "link", "iframe", "object", "a"} & set(seen.tags)
    assert not re.search(r"https?://|@import|url\(", html)
    inside = {base64.b64decode(text) for text in re.findall(r"base64,([A-Za-z0-9+/=]+)", html)}
    beside = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.png")}
    assert inside == set(beside.values())
    assert set(re.findall(r"\]\((\w+\.png)\)", markdown)) == set(beside)
    assert "round_truncated.png" not in beside, "nothing is known of it"
    assert "| words | TPAW, theta\\_2, minus SFT\\_STEPS, theta\\_2 | 6 | +26.7 |" in markdown


def test_eight_seeds_can_show_a_gain_and_one_seed_shows_its_items(study: Path) -> None:
    methods = collect([study])
    more = [
        Method(
            method.label, (*method.parts, *(Part(part.method, part.points, part.seed + 6) for part in method.parts))
        )
        for method in methods
    ]
    assert [claim.verdict for claim in claims_of(more, ["words"])] == ["gain", "gain"]
    one = [Method(method.label, method.parts[:1]) for method in methods]
    start, other = claims_of(one, ["words"])
    assert (start.verdict, start.found.interval, start.corrected_p) == ("not shown", None, 1)
    assert (other.items[0].mean, other.items[0].p) == (pytest.approx(0.4), 0.125)
    text = Seen(as_html("one", blocks_of(one))).text
    assert "20.0 5.7 to 51.0" in text, "Wilson, 2 of 10"
    assert "noise of the items alone, on words for TPAW, theta_2: +50.0 (+17.3 to +82.7) against theta_0" in text


def test_gains_are_drawn_from_each_seeds_own_start(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr(page, "draw", lambda title, across, lines, marks: drawn.update({title: lines}) or PNG)
    methods = collect([study])
    blocks_of([Method(method.label, method.parts[:1]) for method in methods])
    assert "words: gain on theta_0, points" not in drawn
    blocks_of(methods)
    tpaw, _ = drawn["words: gain on theta_0, points"]
    assert [dict(seed)[2] for seed in tpaw.seeds] == pytest.approx([50, 30, 40, 60, 50, 50])
    assert tpaw.intervals[2] == pytest.approx(mean_interval([50, 30, 40, 60, 50, 50]))


def test_what_is_left_out_of_results_is_left_out_of_the_page() -> None:
    bare = Method("bare", (Part("bare", (Point(0), Point(5, 1))),))
    text = Seen(as_html("bare", blocks_of([bare]))).text
    assert "Cost method produced" in text
    assert not re.search("Accuracy|How sure|Rewards|Weights|Responses|Triplets|nan", text)


def test_labels_with_dollars_and_values_that_are_not_finite() -> None:
    curve = [(0, math.nan), (1, math.inf), (2, 1.0)]
    assert plots.draw("50 $ {", "$x_{", [plots.Line("$x_{", [curve, curve], {2: (0, 2)})]).startswith(PNG)
    assert plots.Line("", [[(0, 1.0), (1, 2.0)], [(1, 4.0)], []]).mean() == [(1, 3.0)]


def test_what_is_missing_or_damaged_is_named(study: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere holds neither a finished run \(trainer_state.json\) nor"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"again has \w+ at seed 0 once more"):
        collect([study, write_results(tmp_path / "again", 1)])
    path = study / "results" / "tpaw_seed0.json"
    for content in (
        {"schema": 2},
        studied.part("tpaw", 0, points=[]),
        studied.part("tpaw", 0, points=[{"theta": 1}]),
        {
            **studied.part("tpaw", 0),
            "points": [{"steps": 0, "evaluations": {"words": {"value": 1, "n": 1, "items": "x"}}}],
        },
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"tpaw_seed0.json is damaged .* repeat its part of the study"):
            collect([study])
