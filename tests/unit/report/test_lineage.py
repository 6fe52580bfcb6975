# SPDX-License-Identifier: Apache-2.0
"""The graph of checkpoints and triplets: what is walked, what is missing, and how it is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.report.lineage import Graph, trace
from llamafactory_tpaw.report.lineage_text import as_mermaid, as_trees
from llamafactory_tpaw.report.verify import verify
from tests.unit.report.played import change_json, generate, play, play_three, save


WHOLE = {
    **{"saves/sft": "start", "saves/iter0": "finished", "saves/iter1": "finished", "saves/iter2": "finished"},
    **{f"data/tpaw/d{index}.jsonl": "here" for index in range(3)},
}


@pytest.fixture
def thetas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of a run of three iterations, in the working folder."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    return play_three()


def states(*places: str) -> dict[str, str]:
    graph = trace([Path(place) for place in places])
    return {node.path: node.state for node in [*graph.checkpoints.values(), *graph.triplets.values()]}


def chain(graph: Graph) -> list[str]:
    """Paths from the root on, where each checkpoint has one child at most."""
    (node,) = graph.roots()
    paths = [node.path]
    while children := graph.children(node.key):
        (node,) = children
        paths.append(node.path)
    return paths


def text(graph: Graph) -> list[str]:
    console = Console(width=300, highlight=False, color_system=None)
    with console.capture() as captured:
        for tree in as_trees(graph):
            console.print(tree)
    return [line.rstrip() for line in captured.get().splitlines()]


def lines_of(graph: Graph) -> list[str]:
    return [line.lstrip("│├└─ ") for line in text(graph)]


@pytest.mark.parametrize("place", ["saves/iter2", "saves"])
def test_a_run_is_walked_to_its_root(thetas: list[Path], place: str) -> None:
    graph = trace([Path(place)])
    assert states(place) == WHOLE
    assert chain(graph) == ["saves/sft", "saves/iter0", "saves/iter1", "saves/iter2"]
    names = {node.key: node.name for node in [*graph.checkpoints.values(), *graph.triplets.values()]}
    assert {(kind, names[start], names[end]) for start, end, kind in graph.edges()} == {
        *(("policy", f"theta_{index}", f"theta_{index + 1}") for index in range(3)),
        *(("player", f"theta_{player}", f"theta_{index + 1}") for index in range(3) for player in range(index + 1)),
        *(("data", f"d{round_}", f"theta_{index + 1}") for index in range(3) for round_ in range(index + 1)),
        *(("generated", f"theta_{index}", f"d{index}") for index in range(3)),
    }


def test_a_renamed_folder_is_found_from_a_triplet_file(thetas: list[Path]) -> None:
    Path("saves/iter0").rename("saves/other_name")
    change_json(Path("data/tpaw/d1.meta.json"), generator_path="../../saves/other_name")
    assert chain(trace([Path("data/tpaw/d1.jsonl")])) == ["saves/sft", "saves/other_name"]
    assert chain(trace([Path("saves/iter2")])) == ["saves/sft", "saves/other_name", "saves/iter1", "saves/iter2"]


def test_what_is_gone_or_replaced(thetas: list[Path]) -> None:
    shutil.rmtree("saves/sft")
    Path("data/tpaw/d1.jsonl").unlink()
    result = json.loads(Path("saves/iter0/tpaw.json").read_text())["result"]
    change_json(Path("saves/iter0/tpaw.json"), result=result | {"fingerprint": "f" * 64})
    change_json(Path("data/tpaw/d2.meta.json"), rows_digest="e" * 64)
    other = {"saves/sft": "missing", "data/tpaw/d1.jsonl": "missing"}
    other |= {"saves/iter0": "replaced", "data/tpaw/d2.jsonl": "replaced"}
    assert states("saves/iter2") == WHOLE | other
    lines = text(trace([Path("saves/iter2")]))
    assert any("theta_0  saves/iter0" in line and "another one is in its place" in line for line in lines)


def test_names_of_a_hub_and_other_preference_data(thetas: list[Path]) -> None:
    manifest = json.loads(Path("saves/iter0/tpaw.json").read_text())
    for described in (manifest["policy"], manifest["players"][0]):
        described |= {"path": "org/model", "fingerprint": "f" * 64}
    Path("data/pairs.jsonl").write_text("{}\n")
    source = {"entry": "pairs", "iteration": -1, "rows": 7, "digest": "a" * 64, "generator": "", "foreign": True}
    triplets = [source | {"path": "../../data/pairs.jsonl"}]
    change_json(Path("saves/iter0/tpaw.json"), **manifest | {"triplets": triplets})
    assert states("saves/iter0") == {"saves/iter0": "finished", "org/model": "hub", "data/pairs.jsonl": "foreign"}


def test_places_without_lineage(thetas: list[Path]) -> None:
    with pytest.raises(DataError, match=r"config.json does not exist, or has no meta file beside it. Give an"):
        trace([Path("saves/iter0/config.json")])
    Path("saves/iter0/tpaw.json").write_text("{")
    with pytest.raises(DataError, match=r"saves/iter0/tpaw.json is not valid JSON"):
        trace([Path("saves/iter0")])


def test_the_tree(thetas: list[Path]) -> None:
    """A chain stays on one level, branches get their own; what is known of a node stands below its title."""
    lines = text(trace([Path("saves")]))
    titles = [line for line in lines if not line.startswith(("│   ", "    ", "  ", "│ "))]
    assert titles[0].startswith("theta_0  saves/sft  ")
    assert titles[0].endswith("the start: no tpaw.json")
    assert [title.rpartition("  ")[0] for title in titles[1:]] == [
        "├── D_0 d0  data/tpaw/d0.jsonl",
        "├── theta_1 <- theta_0  saves/iter0",
        "├── D_1 d1  data/tpaw/d1.jsonl",
        "├── theta_2 <- theta_1  saves/iter1",
        "├── D_2 d2  data/tpaw/d2.jsonl",
        "└── theta_3 <- theta_2  saves/iter2",
    ]
    newest = lines_of(trace([Path("saves")]))[-4:]
    assert newest == [
        "finished 2026-01-02T00:00:00Z",
        "iteration 2, tpaw against theta_0, theta_1, theta_2, on d0, d1, d2",
        "changed: `learning_rate` was 0.001 and is 0.0005",
        "spent: 2.0 s scoring 20 tokens, 3.0 s train",
    ]
    play("saves/alone1", thetas[1:2], [Path("data/tpaw/d1.jsonl")], first=1, settings={"tpaw_eta": 1.0})
    lines = text(trace([Path("saves")]))
    assert any(line.startswith("├── theta_2 <- theta_1  saves/alone1") for line in lines)
    assert any(line.startswith("    └── theta_3 <- theta_2  saves/iter2") for line in lines)
    assert sum("10 tokens in 1.0 s" in line for line in lines) == 3, "of a round that two trainings share once"


def test_a_training_that_changed_no_weight(thetas: list[Path]) -> None:
    manifest = json.loads((thetas[1] / "tpaw.json").read_text())
    result = manifest["result"] | {"fingerprint": manifest["policy"]["fingerprint"]}
    change_json(thetas[1] / "tpaw.json", result=result)
    assert any("iteration 0, tpaw against" in line for line in lines_of(trace([Path("saves/iter0")])))


def test_a_chosen_team_is_no_chain(thetas: list[Path]) -> None:
    """Without iter1's tpaw.json nothing says that theta_2 was not trained from theta_0, which played beside it."""
    played = json.loads((thetas[3] / "tpaw.json").read_text())["players"]
    change_json(thetas[3] / "tpaw.json", players=[played[0] | {"score": 0.25}, played[2]])
    (thetas[2] / "tpaw.json").unlink()
    graph = trace([thetas[3]])
    assert any("against theta_0 (0.25), theta_2, on" in line for line in lines_of(graph))
    assert len(graph.roots()) == 2


def test_recorded_texts_are_neither_markup_nor_control_characters(thetas: list[Path]) -> None:
    change_json(thetas[1] / "tpaw.json", settings={"run": '[bold]\x1b[2J"<b>'})
    entry = {"entry": 'a"]<b>', "iteration": 7, "rows": 5, "digest": "a" * 64, "generator": "f" * 64}
    change_json(thetas[3] / "tpaw.json", triplets=[entry])
    graph = trace([Path("saves")])
    assert 'settings: run [bold]\\x1b[2J"<b>' in lines_of(graph)
    assert "triplets whose generator is not known" in text(graph)
    diagram = as_mermaid(graph)
    assert diagram.startswith('flowchart LR\n  n0["theta_1<br>saves/iter0<br>finished"]\n')
    assert "a#34;#93;#60;b#62;" in diagram
    assert diagram.count("==>") == 3


@pytest.mark.parametrize("served", [False, True])
def test_an_opponent_is_a_node_beside_the_run(elsewhere: Path, served: bool) -> None:
    sft = save("saves/sft", 0.0)
    first = generate("d0", 0, sft, samples=3, failed=["a#0", "a#2"], ids_digest="x")
    theta = play("saves/iter0", [sft], [first])
    name = "org/big" if served else "../../models/weak"
    changes: dict[str, Any] = {"opponent": name, "generator_path": name}
    if served:
        changes["generator"] = "served:" + "1" * 64
    play("saves/iter1", [sft, theta], [first, generate("d1", 1, save("models/weak", 9.0), **changes)])
    graph = trace([Path("saves")])
    path = "org/big" if served else "models/weak"
    assert [(root.name, root.path) for root in graph.roots()] == [("theta_0", "saves/sft"), ("opponent", path)]
    lines = lines_of(graph)
    assert any(line.startswith(f"1 triplets of the opponent {path} (in place of theta_1), ") for line in lines)
    assert any("10 tokens in 1.0 s, 3 a prompt, 2 failed, prompts of sft" in line for line in lines)
    assert [check.name for check in verify(graph) if check.state != "ok"] == ["opponent"] * served
