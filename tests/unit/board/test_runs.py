# SPDX-License-Identifier: Apache-2.0
"""What LlamaBoard is told of the runs on disk, and the settings that follow from one another."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.arguments.start import Start
from llamafactory_tpaw.board import runs
from llamafactory_tpaw.board.places import Places
from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.runs import families
from llamafactory_tpaw.runs.yaml_text import settings_text
from tests.unit.board.projects import committed, copy_project, copy_run_files, play, save_model


SELF_PLAY = [(family, method) for family in families.FAMILIES for method in family.self_play]
TINY = "saves/Tiny/full"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.chdir(tmp_path)
    copy_project()
    return Places()


@pytest.fixture
def run(places: Places) -> runs.Run:
    return runs.find_run(places, "Tiny", "full", "tpaw")


def states(places: Places, run: runs.Run) -> list[tuple[int, str]]:
    return [(each.number, each.state) for each in runs.iterations_of(places, run)]


def write(path: str, settings: dict[str, Any], *, later_s: int = 0) -> None:
    """Write a run file that was changed so many seconds after the others."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(settings_text(settings, "Changed."))
    at = Path("yaml/tiny_sft.yaml").stat().st_mtime + later_s
    os.utime(path, (at, at))


def change(name: str, **changes: Any) -> None:
    write(f"yaml/{name}.yaml", committed(name) | changes)


@pytest.mark.parametrize(("family", "method"), SELF_PLAY, ids=lambda value: getattr(value, "name", value))
def test_the_committed_iterations_follow(places: Places, family: families.Family, method: Any) -> None:
    copy_run_files(family.name)
    model_name, finetuning_type = family.saves.split("/")[1:]
    found = runs.find_run(places, model_name, finetuning_type, f"{family.run_prefix}{method}")
    first = runs.settings_of(places, found, 0)
    files = [committed(f"{family.name}_{method}_iter{t}") for t in range(family.iterations[method])]
    assert runs.following(places, first, len(files)) == files
    assert [runs.settings_of(places, found, t) for t in range(len(files))] == files


def test_runs_are_named_by_their_folders(places: Places) -> None:
    copy_run_files("qwen")
    assert runs.run_names(places, "Tiny", "full") == ["spin", "tpaw"]
    assert runs.run_names(places, "Qwen2.5-1.5B", "full") == [
        "gsm8k_spin", "gsm8k_tpaw", "gsm8k_tspin", "spin", "tpaw", "tspin",
    ]  # fmt: skip
    assert runs.run_names(places, "Tiny", "lora") == []
    settings = committed("tiny_tpaw_iter0") | {"output_dir": f"{TINY}/mine_iter0"}
    play(settings)
    write(f"{TINY}/begun_iter0/training_args.yaml", settings | {"output_dir": f"{TINY}/begun_iter0"})
    write(f"{TINY}/sft_iter0/training_args.yaml", {"stage": "sft"})
    Path(f"{TINY}/empty_iter0").mkdir()
    assert runs.run_names(places, "Tiny", "full") == ["begun", "mine", "spin", "tpaw"]


@pytest.mark.parametrize(
    "names", [("..", "full", "tpaw"), ("Tiny", "full", "../sft"), ("Tiny", "full", ""), (None,) * 3]
)
def test_names_that_lead_elsewhere_are_refused(places: Places, names: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match="must be a name"):
        runs.find_run(places, *names)


def test_how_far_iterations_are(places: Places, run: runs.Run) -> None:
    assert states(places, run) == [(0, "new"), (1, "new"), (2, "new")]
    for number in range(3):
        play(committed(f"tiny_tpaw_iter{number}"))
    assert states(places, run) == [(0, "finished"), (1, "finished"), (2, "finished"), (3, "new")]
    assert runs.next_iteration(places, run) == 3
    play(committed("tiny_tpaw_iter1"), "training")
    assert states(places, run) == [(0, "finished"), (1, "interrupted"), (2, "finished")]
    assert runs.next_iteration(places, run) == 1


def test_an_iteration_whose_sampling_was_begun_is_interrupted(places: Places, run: runs.Run) -> None:
    Path("data/tpaw").mkdir()
    triplets = Path("data/tpaw/tiny_tpaw_iter1.jsonl")
    triplets.write_text("{}\n")
    assert states(places, run)[1] == (1, "new")  # another run may have made them
    Path(f"{TINY}/tpaw_iter1").mkdir(parents=True)
    assert states(places, run)[1] == (1, "interrupted")
    triplets.rename(f"{triplets}.partial")
    Path(f"{TINY}/tpaw_iter1").rmdir()
    assert states(places, run)[1] == (1, "interrupted")


def test_a_folder_that_is_only_prepared_is_new(places: Places, run: runs.Run) -> None:
    runs.write_run_files(places, runs.following(places, runs.settings_of(places, run, 0), 3))
    assert states(places, run) == [(0, "new"), (1, "new"), (2, "new")]


def test_damaged_files_hide_no_other(places: Places, run: runs.Run) -> None:
    play(committed("tiny_tpaw_iter0"))
    play(committed("tiny_tpaw_iter1"))
    Path(f"{TINY}/tpaw_iter1/tpaw.json").write_text("{")
    Path("yaml/tiny_spin_iter1.yaml").write_text("stage: tpaw\n  a: [")
    Path("data/dataset_info.json").write_text("[]")
    assert states(places, run) == [(0, "finished"), (1, "damaged"), (2, "new")]
    assert "is damaged" in runs.iterations_of(places, run)[1].problem
    assert runs.run_names(places, "Tiny", "full") == ["spin", "tpaw"]
    problems = runs.unreadable(places, "Tiny", "full")
    assert len(problems) == 3
    assert problems[0].startswith("The run file yaml/tiny_spin_iter1.yaml cannot be read")
    assert problems[1].startswith(f"{TINY}/tpaw_iter1/tpaw.json is damaged")
    assert problems[2].startswith("data/dataset_info.json must hold one JSON object")
    assert runs.prompt_sets(places) == runs.opponent_sets(places) == []


@pytest.mark.parametrize("changes", [{"policy": {}}, {"players": None}, {"triplets": [1]}, {"settings": []}])
def test_values_of_another_kind_are_damage(places: Places, run: runs.Run, changes: dict[str, Any]) -> None:
    play(committed("tiny_tpaw_iter0"))
    path = Path(f"{TINY}/tpaw_iter0/tpaw.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    Path("yaml/tiny_tpaw_iter0.yaml").unlink()
    assert runs.iterations_of(places, run)[0].state == "damaged"
    assert "tpaw_iter0/tpaw.json is damaged" in runs.unreadable(places, "Tiny", "full")[0]
    assert [each.theta for each in runs.checkpoints_of(places, run)] == [0, 1, 2]


def test_odd_names_in_a_run_file_hide_no_other(places: Places, run: runs.Run) -> None:
    change("tiny_tpaw_iter1", dataset=2024, tpaw_players=[1, 2])
    assert runs.rounds_of(places, run) == {0: "tiny_tpaw_iter0", 1: "2024", 2: "tiny_tpaw_iter2"}
    assert len(runs.checkpoints_of(places, run)) == 3


def test_a_copied_folder_is_not_the_one_it_was_copied_from(places: Places) -> None:
    runs.write_run_files(places, [committed("tiny_tpaw_iter0")])
    shutil.copytree(f"{TINY}/tpaw_iter0", f"{TINY}/copy_iter0")
    with pytest.raises(ConfigError, match="Nothing in"):
        runs.settings_of(places, runs.find_run(places, "Tiny", "full", "copy"), 0)


def test_without_any_folder_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = Places()
    run = runs.find_run(places, "Tiny", "full", "tpaw")
    assert runs.run_names(places, "Tiny", "full") == runs.unreadable(places, "Tiny", "full") == []
    assert states(places, run) == [(0, "new")]
    assert runs.checkpoints_of(places, run) == []
    with pytest.raises(ConfigError, match="Nothing in saves/Tiny/full or yaml says the settings of iteration 2"):
        runs.settings_of(places, run, 2)
    first = runs.first_settings(places, run, Start("org/model", ("saves/a",)))
    assert (first["adapter_name_or_path"], first["tpaw_players"]) == ("saves/a", "org/model+saves/a")
    assert (first["dataset"], first["output_dir"]) == ("Tiny_tpaw_iter0", f"{TINY}/tpaw_iter0")
    assert runs.following(places, first, 2)[1]["dataset"] == "Tiny_tpaw_iter0,Tiny_tpaw_iter1"


@pytest.mark.parametrize("number", [-1, 1001, True, "1", None, 1.0])
def test_wrong_numbers_are_refused(places: Places, run: runs.Run, number: Any) -> None:
    with pytest.raises(ConfigError, match=r"`tpaw_iteration` is .*must be a whole number"):
        runs.settings_of(places, run, number)
    with pytest.raises(ConfigError, match=r"`tpaw_iterations` is .*must be a whole number"):
        runs.following(places, committed("tiny_tpaw_iter0"), number)


def test_run_files_that_differ_are_followed(places: Places) -> None:
    change("tiny_tpaw_iter1", num_train_epochs=1.0, warmup_ratio=None)
    change("tiny_tpaw_iter2", num_train_epochs=3.0, learning_rate=5e-4)
    first = committed("tiny_tpaw_iter0")
    played = runs.following(places, first, 4)
    assert [each["num_train_epochs"] for each in played] == [2.0, 1.0, 3.0, 3.0]
    assert ["warmup_ratio" in each for each in played] == [True, False, True, True]
    edited = runs.following(places, first | {"num_train_epochs": 5.0, "tpaw_eta": 4.0, "seed": None}, 3)
    assert [each["num_train_epochs"] for each in edited] == [5.0, 5.0, 5.0]
    assert [each["tpaw_eta"] for each in edited] == [4.0, 4.0, 4.0]
    assert [each["learning_rate"] for each in edited] == [1e-3, 1e-3, 5e-4]
    assert runs.following(places, first | {"learning_rate": "1.0e-3"}, 3)[2]["learning_rate"] == 5e-4


def test_run_files_with_names_of_their_own_are_followed(places: Places) -> None:
    change("tiny_tpaw_iter1", dataset="tiny_tpaw_iter0,mine_iter1")
    change("tiny_tpaw_iter2", dataset="tiny_tpaw_iter0,mine_iter1,mine_iter2")
    played = runs.following(places, committed("tiny_tpaw_iter0"), 3)
    assert [each["dataset"] for each in played[1:]] == [
        "tiny_tpaw_iter0,mine_iter1",
        "tiny_tpaw_iter0,mine_iter1,mine_iter2",
    ]


def test_the_file_that_was_changed_last_says_the_settings(places: Places, run: runs.Run) -> None:
    mine = committed("tiny_tpaw_iter1") | {"tpaw_eta": 4.0}
    own = f"{TINY}/tpaw_iter1/training_args.yaml"
    write("yaml/tiny_tpaw_iter1.yaml", committed("tiny_tpaw_iter1"), later_s=0)
    write(own, mine, later_s=10)
    assert runs.settings_of(places, run, 1) == mine
    assert runs.settings_of(places, run, 2) == committed("tiny_tpaw_iter2")
    write("yaml/tiny_tpaw_iter1.yaml", committed("tiny_tpaw_iter1") | {"tpaw_eta": 5.0}, later_s=20)
    assert runs.settings_of(places, run, 1)["tpaw_eta"] == 5.0
    play(mine, "training")  # it was begun with the older one
    assert runs.settings_of(places, run, 1) == mine


def test_settings_are_found_without_run_files(places: Places, run: runs.Run) -> None:
    save_model(f"{TINY}/sft")
    for number in range(4):
        settings = runs.following(places, committed("tiny_tpaw_iter0"), number + 1)[-1]
        play(settings | {"tpaw_eta": 3.0})
    for path in Path("yaml").glob("*_iter*.yaml"):
        path.unlink()
    expected = committed("tiny_tpaw_iter2") | {"tpaw_eta": 3.0}
    found = runs.settings_of(places, run, 2)
    assert found == {key: expected[key] for key in found}
    assert {"model_name_or_path", "tpaw_players", "dataset", "output_dir", "seed", "stage", "do_train"} <= set(found)
    # θ_0 left the team, so only what plays is known.
    later = runs.settings_of(places, run, 5)
    assert later["tpaw_players"].split(",") == [f"{TINY}/tpaw_iter{index}" for index in range(5)]
    assert later["dataset"] == "tiny_tpaw_iter3,tiny_tpaw_iter4,tiny_tpaw_iter5"


def test_checkpoints_are_in_order(places: Places, run: runs.Run) -> None:
    save_model(f"{TINY}/sft")
    play(committed("tiny_tpaw_iter0"))
    found = runs.checkpoints_of(places, run)
    assert [(each.name, each.path, each.here) for each in found] == [
        ("theta_0", f"{TINY}/sft", True),
        ("theta_1", f"{TINY}/tpaw_iter0", True),
        ("theta_2", f"{TINY}/tpaw_iter1", False),
    ]
    Path(f"{TINY}/sft/model.safetensors").unlink()
    assert not runs.checkpoints_of(places, run)[0].here


def test_adapters_and_names_of_a_hub_are_checkpoints(places: Places, run: runs.Run) -> None:
    adapter = Path("saves/Tiny/lora/sft")
    adapter.mkdir(parents=True)
    change("tiny_tpaw_iter0", tpaw_players="org/model+saves/Tiny/lora/sft", model_name_or_path="org/model")
    assert not runs.checkpoints_of(places, run)[0].here
    save_model(str(adapter))
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "config.json").rename(adapter / "adapter_config.json")
    assert runs.checkpoints_of(places, run)[0].here


def test_adapters_are_found_in_what_was_recorded(places: Places) -> None:
    lora = {"finetuning_type": "lora", "create_new_adapter": True, "output_dir": "saves/Tiny/lora/mine_iter0"}
    play(committed("tiny_tpaw_iter0") | lora)
    folder = Path("saves/Tiny/lora/mine_iter0")
    manifest = json.loads((folder / "tpaw.json").read_text())
    save_model("saves/Tiny/base")
    save_model("saves/Tiny/lora/a")
    policy = {"path": "../a", "fingerprint": "", "below": [{"path": "../../base", "fingerprint": ""}]}
    (folder / "tpaw.json").write_text(json.dumps(manifest | {"policy": policy, "players": [policy]}))
    run = runs.find_run(places, "Tiny", "lora", "mine")
    found = runs.settings_of(places, run, 0)
    assert (found["model_name_or_path"], found["adapter_name_or_path"]) == ("saves/Tiny/base", "saves/Tiny/lora/a")
    first = "saves/Tiny/base+saves/Tiny/lora/a"
    assert found["tpaw_players"] == first
    assert [each.path for each in runs.checkpoints_of(places, run)] == [first, f"{first}+saves/Tiny/lora/mine_iter0"]


def test_rounds(places: Places, run: runs.Run) -> None:
    assert runs.rounds_of(places, run) == {number: f"tiny_tpaw_iter{number}" for number in range(3)}


def test_a_run_is_found_by_its_settings(places: Places, run: runs.Run) -> None:
    assert runs.run_of(places, committed("tiny_tpaw_iter2")) == run
    assert runs.run_of(places, {"output_dir": f"{TINY}/sft"}) is None
    with pytest.raises(ConfigError, match="`output_dir`"):
        runs.run_of(places, {"output_dir": "elsewhere/tpaw_iter0"})


def test_run_files_of_other_folders_are_left_alone(places: Places) -> None:
    change("tiny_spin_iter0", output_dir="/elsewhere/spin_iter0")
    change("tiny_spin_iter1", output_dir="saves/Tiny/full/spin_iter7")
    change("tiny_spin_iter2", stage="sft")
    assert runs.run_names(places, "Tiny", "full") == ["tpaw"]
