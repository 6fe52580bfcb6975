# SPDX-License-Identifier: Apache-2.0
"""The graph of a run as text for the terminal and as a picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from llamafactory_tpaw.errors import EnvironmentProblem
from llamafactory_tpaw.report import lineage_picture
from llamafactory_tpaw.report.lineage_text import as_trees
from llamafactory_tpaw.report.trace import trace
from tests.unit.report.played import branch, change_json, play_three


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def thetas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A run of three iterations in the working folder."""
    monkeypatch.chdir(tmp_path)
    return play_three()


def text(width: int = 300) -> list[str]:
    """The lines of the tree without guides and fingerprints."""
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as captured:
        for tree in as_trees(trace([Path("saves")])):
            console.print(tree)
    return [line.rstrip() for line in captured.get().splitlines()]


def without_guides(lines: list[str]) -> list[str]:
    return [line.lstrip("│├└─ ") for line in lines]


def test_a_chain_stays_on_one_level() -> None:
    lines = text()
    titles = [line for line in lines if not line.startswith(("│   ", "    "))]
    assert [title.rpartition("  ")[0] for title in titles] == [
        "theta_0  saves/sft  " + titles[0].split("  ")[2],
        "├── D_0 d0  data/tpaw/d0.jsonl",
        "├── theta_1 <- theta_0  saves/iter0",
        "├── D_1 d1  data/tpaw/d1.jsonl",
        "├── theta_2 <- theta_1  saves/iter1",
        "├── D_2 d2  data/tpaw/d2.jsonl",
        "└── theta_3 <- theta_2  saves/iter2",
    ]
    assert titles[0].endswith("the start: no tpaw.json")


def test_what_is_said_of_an_iteration_and_its_triplets() -> None:
    lines = without_guides(text())
    newest = next(index for index, line in enumerate(lines) if line.startswith("theta_3"))
    assert lines[newest + 1 :] == [
        "finished 2026-01-02 00:00:00 UTC",
        "iteration 2, tpaw against theta_0, theta_1, theta_2, on d0, d1, d2",
        "changed: `learning_rate` was 0.001 and is 0.0005",
        "spent: 1.0 s generating 10 tokens, 2.0 s scoring 20 tokens, 3.0 s training",
    ]
    assert "settings: learning_rate 0.001" in lines
    assert lines[2:4] == [
        "1 triplets of theta_0, generated 2026-01-01 00:00:00 UTC, prompts of sft",
        "hf 1: temperature 1.0, seed 0",
    ]


def test_branches_have_levels_of_their_own(thetas: list[Path]) -> None:
    branch(thetas)
    lines = text()
    (alone,) = [line for line in lines if "saves/alone1" in line]
    (other,) = [line for line in lines if "saves/iter1" in line]
    (newest,) = [line for line in lines if "saves/iter2" in line]
    assert alone.startswith("├── theta_2 <- theta_1")
    assert other.startswith("└── theta_2 <- theta_1")
    assert newest.startswith("    └── theta_3 <- theta_2")


def test_what_is_missing_is_shown(thetas: list[Path]) -> None:
    shutil.rmtree(thetas[1])
    Path("data/tpaw/d2.jsonl").unlink()
    lines = text()
    assert any(line.endswith("missing") and "theta_1 <- theta_0  saves/iter0" in line for line in lines)
    assert any(line.endswith("missing") and "D_2 d2  data/tpaw/d2.jsonl" in line for line in lines)


def test_nothing_is_cut_off_on_a_narrow_terminal() -> None:
    wide, narrow = (" ".join(without_guides(text(width))).split() for width in (300, 60))
    assert "".join(narrow) == "".join(wide)


def test_names_are_no_markup(thetas: list[Path]) -> None:
    change_json(thetas[3] / "tpaw.json", settings={"run": "[bold]x[/bold]"})
    assert any("[bold]x[/bold]" in line for line in text())


def test_triplets_without_a_known_generator(thetas: list[Path]) -> None:
    manifest = {
        "digest": "a" * 64,
        "entry": "gone",
        "iteration": 7,
        "rows": 5,
        "generator": "f" * 64,
        "foreign": False,
    }
    change_json(thetas[3] / "tpaw.json", triplets=[manifest])
    lines = text()
    assert "triplets whose generator is not known" in lines
    assert any("D_7 gone" in line and line.endswith("missing") for line in lines)


@pytest.mark.parametrize("name", ["a.png", "new/b.SVG"])
def test_a_picture(tmp_path: Path, name: str) -> None:
    lineage_picture.draw(trace([Path("saves")]), Path(name))
    content = Path(name).read_bytes()
    assert content.startswith(PNG) if name.endswith("png") else b"</svg>" in content
    assert len(content) > 5000


def test_no_box_covers_another(thetas: list[Path]) -> None:
    branch(thetas)
    shutil.rmtree(thetas[1])
    foreign = {"entry": "pairs", "iteration": -1, "rows": 7, "digest": "a" * 64, "generator": "", "foreign": True}
    change_json(thetas[2] / "tpaw.json", triplets=[foreign, foreign | {"digest": "b" * 64}])
    graph = trace([Path("saves")])
    places = lineage_picture.place(graph)
    assert places.keys() == {*graph.checkpoints, *graph.triplets}
    spots = list(places.values())
    for index, spot in enumerate(spots):
        for other in spots[:index]:
            apart = abs(spot.x - other.x) >= lineage_picture.WIDTH
            assert apart or abs(spot.y - other.y) >= lineage_picture.LOW_HEIGHT, (spot, other)
    lineage_picture.draw(graph, Path("a.png"))


def test_layers_go_from_parents_to_children() -> None:
    graph = trace([Path("saves")])
    places = lineage_picture.place(graph)
    for start, end, _ in graph.edges():
        assert places[start].x < places[end].x


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match=r"file/a\.png cannot be written: .* Choose another file\."):
        lineage_picture.draw(trace([Path("saves")]), tmp_path / "file" / "a.png")
