# SPDX-License-Identifier: Apache-2.0
"""The walk from a folder or a triplet file to the checkpoints that everything started from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.report.lineage import Graph, as_json, changed_settings
from llamafactory_tpaw.report.trace import trace
from tests.unit.report.played import branch, change_json, play_three


@pytest.fixture
def thetas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of a run of three iterations, in the working folder."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    return play_three()


def states(graph: Graph) -> dict[str, str]:
    return {node.path: node.state for node in [*graph.checkpoints.values(), *graph.triplets.values()]}


def chain(graph: Graph) -> list[str]:
    """Paths from the root on, where each checkpoint has one child at most."""
    (node,) = graph.roots()
    paths = [node.path]
    while children := graph.children(node.key):
        (node,) = children
        paths.append(node.path)
    return paths


WHOLE = {
    "saves/sft": "start",
    "saves/iter0": "finished",
    "saves/iter1": "finished",
    "saves/iter2": "finished",
    "data/tpaw/d0.jsonl": "here",
    "data/tpaw/d1.jsonl": "here",
    "data/tpaw/d2.jsonl": "here",
}


@pytest.mark.parametrize("place", ["saves/iter2", "saves"])
def test_a_run_is_walked_to_its_root(thetas: list[Path], place: str) -> None:
    graph = trace([Path(place)])
    assert states(graph) == WHOLE
    assert chain(graph) == ["saves/sft", "saves/iter0", "saves/iter1", "saves/iter2"]
    names = {node.key: node.name for node in [*graph.checkpoints.values(), *graph.triplets.values()]}
    edges = {(kind, names[start], names[end]) for start, end, kind in graph.edges()}
    assert edges == {
        *(("policy", f"theta_{index}", f"theta_{index + 1}") for index in range(3)),
        *(("player", f"theta_{player}", f"theta_{index + 1}") for index in range(3) for player in range(index + 1)),
        *(("data", f"d{round_}", f"theta_{index + 1}") for index in range(3) for round_ in range(index + 1)),
        *(("generated", f"theta_{index}", f"d{index}") for index in range(3)),
    }
    assert graph.notes == []


def test_a_triplet_file_leads_to_its_generator(thetas: list[Path]) -> None:
    graph = trace([Path("data/tpaw/d1.jsonl")])
    assert set(states(graph)) == {"data/tpaw/d1.jsonl", "saves/iter0", "saves/sft", "data/tpaw/d0.jsonl"}
    assert chain(graph) == ["saves/sft", "saves/iter0"]


def test_branches_are_one_graph(thetas: list[Path]) -> None:
    graph = trace([Path("saves")]) if branch(thetas) else None
    (root,) = graph.roots()
    (first,) = graph.children(root.key)
    assert [child.path for child in graph.children(first.key)] == ["saves/alone1", "saves/iter1"]
    assert len(graph.checkpoints) == 5
    alone = graph.children(first.key)[0]
    assert (alone.name, alone.players) == ("theta_2", [first.key])


def test_a_moved_run_is_the_same_graph(thetas: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = {(node.key, node.path) for node in trace([Path("saves")]).checkpoints.values()}
    monkeypatch.chdir(tmp_path)
    shutil.move("run", "elsewhere")
    graph = trace([Path("elsewhere/saves")])
    assert {(node.key, node.path.removeprefix("elsewhere/")) for node in graph.checkpoints.values()} == before
    assert set(states(graph).values()) == {"start", "finished", "here"}


def test_a_renamed_folder_is_found_by_its_content(thetas: list[Path]) -> None:
    Path("saves/iter0").rename("saves/other_name")
    graph = trace([Path("saves/iter2")])
    assert chain(graph) == ["saves/sft", "saves/other_name", "saves/iter1", "saves/iter2"]
    assert "missing" not in states(graph).values()


def test_what_is_gone_is_missing(thetas: list[Path]) -> None:
    shutil.rmtree("saves/iter0")
    shutil.rmtree("saves/sft")
    Path("data/tpaw/d1.jsonl").unlink()
    graph = trace([Path("saves/iter2")])
    missing = {path for path, state in states(graph).items() if state == "missing"}
    assert missing == {"saves/iter0", "saves/sft", "data/tpaw/d1.jsonl"}
    assert chain(graph) == ["saves/sft", "saves/iter0", "saves/iter1", "saves/iter2"]


def test_another_checkpoint_in_its_place_is_not_taken_for_it(thetas: list[Path]) -> None:
    result = json.loads(Path("saves/iter0/tpaw.json").read_text())["result"]
    change_json(Path("saves/iter0/tpaw.json"), result=result | {"fingerprint": "f" * 64})
    change_json(Path("data/tpaw/d1.meta.json"), rows_digest="e" * 64)
    graph = trace([Path("saves/iter2")])
    assert states(graph) == WHOLE | {"saves/iter0": "replaced", "data/tpaw/d1.jsonl": "replaced"}


def test_what_cannot_be_read_is_told(thetas: list[Path]) -> None:
    Path("saves/iter0/tpaw.json").write_text("{")
    Path("data/tpaw/d1.meta.json").write_text("{")
    graph = trace([Path("saves/iter2")])
    assert states(graph) == WHOLE | {"saves/iter0": "damaged", "data/tpaw/d1.jsonl": "damaged"}
    assert any("saves/iter0/tpaw.json is damaged" in note for note in graph.notes)
    assert any("d1.meta.json is not valid JSON" in note for note in graph.notes)


def test_training_and_checkpoints_on_the_way(thetas: list[Path]) -> None:
    change_json(Path("saves/iter2/tpaw.json"), status="training", result={})
    shutil.copytree("saves/iter2", "saves/iter1/checkpoint-5")
    change_json(Path("saves/iter1/checkpoint-5/tpaw.json"), status="checkpoint", step=5)
    assert states(trace([Path("saves")]))["saves/iter2"] == "training"
    assert "saves/iter1/checkpoint-5" not in states(trace([Path("saves")]))
    assert states(trace([Path("saves/iter1/checkpoint-5")]))["saves/iter1/checkpoint-5"] == "checkpoint"


def test_names_of_a_hub(thetas: list[Path]) -> None:
    manifest = json.loads(Path("saves/iter0/tpaw.json").read_text())
    for described in (manifest["policy"], manifest["players"][0]):
        described |= {"path": "org/model", "fingerprint": "f" * 64}
    change_json(Path("saves/iter0/tpaw.json"), **manifest | {"triplets": []})
    assert states(trace([Path("saves/iter0")])) == {"saves/iter0": "finished", "org/model": "hub"}


def test_files_of_the_first_version(thetas: list[Path]) -> None:
    """They have no place of the triplets, and the generator's from the folder in which the command ran."""
    entries = {f"d{index}": {"file_name": f"tpaw/d{index}.jsonl", "ranking": True} for index in range(3)}
    Path("data/dataset_info.json").write_text(json.dumps(entries))
    for index in range(3):
        path = Path(f"saves/iter{index}/tpaw.json")
        manifest = json.loads(path.read_text())
        old = [{key: source[key] for key in source if key not in ("path", "meta")} for source in manifest["triplets"]]
        files = {key: manifest["policy"][key] for key in ("name", "path", "fingerprint")}
        new = ("seeds", "started", "finished", "cache", "step")
        content = {key: value for key, value in manifest.items() if key not in new}
        path.write_text(json.dumps(content | {"triplets": old, "policy": files}))
        change_json(Path(f"data/tpaw/d{index}.meta.json"), generator_path=str(thetas[index]))
    assert states(trace([Path("saves/iter2")])) == WHOLE


def test_other_preference_data(thetas: list[Path]) -> None:
    Path("data/pairs.jsonl").write_text("{}\n")
    source = {"entry": "pairs", "iteration": -1, "rows": 7, "digest": "a" * 64, "generator": "", "foreign": True}
    change_json(Path("saves/iter0/tpaw.json"), triplets=[source | {"path": "../../data/pairs.jsonl"}])
    graph = trace([Path("saves/iter0")])
    (pairs,) = graph.triplets.values()
    assert (pairs.state, pairs.iteration, pairs.generator, pairs.rows) == ("foreign", None, None, 7)


@pytest.mark.parametrize(
    ("place", "message"), [("nothing", "nothing does not exist. Give an"), ("data", "data holds no")]
)
def test_places_without_lineage(thetas: list[Path], place: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        trace([Path(place)])


def test_what_changed_since_the_iteration_before(thetas: list[Path]) -> None:
    change_json(Path("saves/iter2/tpaw.json"), versions={"torch": "3"})
    graph = trace([Path("saves/iter2")])
    changes = {node.name: changed_settings(graph, node) for node in graph.checkpoints.values()}
    assert changes == {
        "theta_0": [],
        "theta_1": [],
        "theta_2": [],
        "theta_3": ["`learning_rate` was 0.001 and is 0.0005", "torch none -> 3"],
    }


def test_as_data(thetas: list[Path]) -> None:
    content = json.loads(json.dumps(as_json(trace([Path("saves")]))))
    assert [len(content[kind]) for kind in ("checkpoints", "triplets", "edges", "notes")] == [4, 3, 18, 0]
    newest = next(node for node in content["checkpoints"] if node["name"] == "theta_3")
    assert newest["path"] == "saves/iter2"
    assert newest["manifest"]["seconds"]["train"] == 3.0
    keys = {node["key"] for kind in ("checkpoints", "triplets") for node in content[kind]}
    assert {edge[end] for edge in content["edges"] for end in ("from", "to")} == keys
