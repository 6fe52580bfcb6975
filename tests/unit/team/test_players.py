# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints play, and what is said of wrong ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.arguments.start import same_place
from llamafactory_tpaw.errors import ConfigError, DataError
from llamafactory_tpaw.team.compatibility import position_problems, vocabulary_problems
from llamafactory_tpaw.team.manifest import write_manifest
from llamafactory_tpaw.team.players import (
    Player,
    lineage_problems,
    list_players,
    parent_problems,
    player_problems,
    team_of,
)
from tests.unit.team.checkpoints import make_tensors, save_single
from tests.unit.team.test_manifest import make_manifest


def keys(iteration: int, players: list[str] | None, team_size: int = 3, objective: str = "tpaw") -> SimpleNamespace:
    return SimpleNamespace(
        tpaw_iteration=iteration, tpaw_players=players, tpaw_team_size=team_size, tpaw_objective=objective
    )


def problems_of(*args: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        list_players(*args)
    return caught.value.problems


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (keys(0, None), [(0, "c")]),
        (keys(0, ["c"]), [(0, "c")]),
        (keys(1, ["b", "c"]), [(0, "b"), (1, "c")]),
        (keys(4, ["a", "b", "c"]), [(2, "a"), (3, "b"), (4, "c")]),
        (keys(2, ["a", "b", "c"], team_size=1), [(0, "a"), (1, "b"), (2, "c")]),
        (keys(3, ["c"], team_size=1), [(3, "c")]),
        (keys(3, None, objective="tspin"), [(3, "c")]),
        (keys(3, ["b", "c"], objective="tspin"), [(2, "b"), (3, "c")]),
    ],
)
def test_numbers_end_with_the_iteration(arguments: Any, expected: list[tuple[int, str]]) -> None:
    players = list_players(arguments, "c")
    assert [(player.theta, player.path) for player in players] == expected
    assert players[-1].name == f"theta_{arguments.tpaw_iteration}"


def test_team_is_the_newest() -> None:
    players = [Player(index, str(index)) for index in range(5)]
    assert [player.theta for player in team_of(players, 3)] == [2, 3, 4]
    assert team_of(players, 9) == players


def test_too_few_and_too_many() -> None:
    (problem,) = problems_of(keys(4, ["b", "c"]), "c")
    assert "lists 2 checkpoints, but iteration 4 with `tpaw_team_size: 3` takes 3 to 5: theta_2 to theta_4" in problem
    (problem,) = problems_of(keys(0, ["b", "c"]), "c")
    assert "lists 2 checkpoints, but iteration 0 with `tpaw_team_size: 3` takes 1: theta_0, oldest first" in problem
    (problem,) = problems_of(keys(2, None), "c")
    assert "`tpaw_players` is missing" in problem
    assert "Give the list" in problem


def test_all_problems_of_the_list_at_once() -> None:
    assert len(problems_of(keys(2, ["a", "a"]), "c")) == 3


def test_one_folder_has_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    Path("link").symlink_to("a")
    assert same_place("a", str(tmp_path / "a"))
    assert same_place("link", "./a/")
    assert same_place("x/y", "x/y/")
    assert not same_place("a", "b")
    (problem,) = problems_of(keys(1, ["link", "a"]), "a")
    assert "`tpaw_players` names a, link more than once" in problem


def test_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("saves").mkdir()
    assert not Player(0, "Qwen/Qwen2.5-1.5B").is_local
    assert not Player(1, "somebody/theta_1").is_local
    assert Player(1, "saves/theta_1").is_local
    assert Player(0, "./saves/sft").is_local
    assert Player(0, "/no/model").is_local
    assert player_problems([Player(0, "Qwen/Qwen2.5-1.5B")]) == []


def test_what_the_hub_does_not_have(tmp_path: Path) -> None:
    model_args = SimpleNamespace(model_revision="main", cache_dir=str(tmp_path), hf_hub_token=None)
    with pytest.raises(DataError, match=r"theta_0 is `nobody/nothing`, which is no folder here.*Correct the path\."):
        Player(0, "nobody/nothing").places(model_args)
    assert Player(0, str(tmp_path)).places(model_args) == [tmp_path]


@pytest.fixture
def thetas(tmp_path: Path) -> list[Player]:
    """Whole checkpoints θ_0, θ_1, θ_2; their fingerprints are `fp0` and so on."""
    players = [Player(theta, str(tmp_path / f"theta_{theta}")) for theta in range(3)]
    for player in players:
        save_single(Path(player.path), make_tensors())
    for parent, child in itertools.pairwise(players):
        policy = {"name": parent.name, "path": parent.path, "fingerprint": f"fp{parent.theta}"}
        result = {"name": child.name, "fingerprint": f"fp{child.theta}"}
        write_manifest(child.path, make_manifest(iteration=parent.theta, policy=policy, result=result))
    return players


FINGERPRINTS = {f"theta_{theta}": f"fp{theta}" for theta in range(3)}


def test_right_players_have_no_problem(thetas: list[Player]) -> None:
    assert player_problems(thetas) == []
    assert player_problems(thetas[1:]) == []
    assert parent_problems(thetas, FINGERPRINTS) == []
    assert parent_problems(thetas[1:], FINGERPRINTS) == []


def test_incomplete_ones_are_told_with_their_key(thetas: list[Player]) -> None:
    for player in (thetas[0], thetas[2]):
        (Path(player.path) / "model.safetensors").unlink()
    first, last = player_problems(thetas)
    assert first.startswith("theta_0 (`tpaw_players`): ")
    assert last.startswith("theta_2 (`model_name_or_path`): ")


def test_wrong_order(thetas: list[Player]) -> None:
    swapped = [thetas[0], Player(1, thetas[2].path), Player(2, thetas[1].path)]
    first, second = player_problems(swapped)
    assert "as theta_1, but its tpaw.json says that it is theta_2" in first
    assert "as theta_2, but its tpaw.json says that it is theta_1" in second
    (problem,) = player_problems([thetas[1], Player(1, thetas[0].path)])
    assert "as theta_1, but it has no tpaw.json" in problem


def test_a_gap_in_the_team_is_found(thetas: list[Player]) -> None:
    (problem,) = player_problems([Player(1, thetas[2].path)])
    assert "without gaps" in problem


def test_unfinished_player(thetas: list[Player]) -> None:
    path = Path(thetas[1].path) / "tpaw.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "training"}))
    for theta in (0, 1):
        (problem,) = player_problems([Player(theta, thetas[1].path)])
        assert "its training is not finished. Run iteration 0 again: it continues." in problem


def test_another_parent(thetas: list[Player]) -> None:
    (problem,) = parent_problems(thetas, FINGERPRINTS | {"theta_0": "other"})
    assert f"theta_1 ({thetas[1].path}) was trained from a checkpoint with fingerprint fp0" in problem
    assert f"`tpaw_players` has {thetas[0].path} with other as theta_0" in problem


def test_weights_changed_since(thetas: list[Player]) -> None:
    (problem,) = parent_problems(thetas, FINGERPRINTS | {"theta_2": "other"})
    assert f"theta_2 ({thetas[2].path}) has fingerprint other, but its tpaw.json says fp2" in problem


def test_a_checkpoint_on_the_way_may_play(thetas: list[Player]) -> None:
    """It has no recorded fingerprint of its own, but its parent is checked."""
    path = Path(thetas[1].path) / "tpaw.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "checkpoint", "step": 5, "result": {}}))
    assert player_problems(thetas[:2]) == []
    assert parent_problems(thetas[:2], FINGERPRINTS) == []
    assert len(parent_problems(thetas[:2], FINGERPRINTS | {"theta_0": "other"})) == 1


def test_downloaded_players_are_checked_where_they_are(thetas: list[Player]) -> None:
    folders = {player.name: Path(player.path) for player in thetas}
    hub = [Player(theta, f"org/theta_{theta}") for theta in range(3)]
    assert parent_problems(hub, FINGERPRINTS, folders) == []
    (problem,) = parent_problems(hub, FINGERPRINTS | {"theta_2": "other"}, folders)
    assert "theta_2 (org/theta_2) has fingerprint other, but its tpaw.json says fp2" in problem
    assert lineage_problems(hub[1], folders["theta_1"]) == []
    (problem,) = lineage_problems(hub[1], folders["theta_2"])
    assert "`tpaw_players` has org/theta_1 as theta_1, but its tpaw.json says that it is theta_2" in problem


class Hub:
    """Stands for the hub: a repository's files, of which it gives what is asked for."""

    def __init__(self, folder: Path, *files: str) -> None:
        self.folder = folder
        self.files = files
        self.asked: list[list[str]] = []

    def snapshot_download(self, name: str, *, allow_patterns: list[str], **_: Any) -> str:
        self.asked.append(allow_patterns)
        self.folder.mkdir(exist_ok=True)
        for file in self.files:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (self.folder / file).write_text(file)
        return str(self.folder)

    def given(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


HUB_ARGS = SimpleNamespace(model_revision="main", cache_dir=None, hf_hub_token=None, trust_remote_code=False)


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Hub]:
    """Return a function that downloads `org/model` with these files."""
    import huggingface_hub

    from llamafactory_tpaw.lf import facade

    def start(*files: str, **changes: Any) -> Hub:
        hub = Hub(tmp_path / "hub", *files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
        monkeypatch.setattr(facade, "download_from_other_hub", lambda args: args.model_name_or_path, raising=False)
        Player(0, "org/model").places(SimpleNamespace(**vars(HUB_ARGS) | changes))
        return hub

    return start


def test_what_is_downloaded(download: Callable[..., Hub]) -> None:
    small = ["config.json", "tokenizer.json", "tpaw.json"]
    hub = download(*small, "model.safetensors", "pytorch_model.bin", "training_args.bin", "modeling.py", "a.gguf")
    assert hub.given() == sorted([*small, "model.safetensors"])
    assert len(hub.asked) == 1


def test_bin_files_are_downloaded_where_there_is_nothing_else(download: Callable[..., Hub]) -> None:
    shards = ["pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin", "pytorch_model.bin.index.json"]
    hub = download("config.json", *shards, "training_args.bin", "optimizer.bin")
    assert hub.given() == sorted(["config.json", *shards])


def test_code_is_downloaded_only_where_it_is_trusted(download: Callable[..., Hub]) -> None:
    assert "modeling.py" in download("model.safetensors", "modeling.py", trust_remote_code=True).given()


def test_vocabularies(tmp_path: Path) -> None:
    folders = {f"theta_{index}": tmp_path / str(index) for index in range(3)}
    configs = [{"vocab_size": 400}, {"vocab_size": 400}, {"text_config": {"vocab_size": 400}}]
    for folder, config in zip(folders.values(), configs, strict=True):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
    assert vocabulary_problems(folders, 400) == []
    (problem,) = vocabulary_problems(folders, 401)
    assert problem.startswith("The tokenizer has 401 tokens, but theta_0, theta_1, theta_2 only 400")
    (folders["theta_1"] / "config.json").write_text('{"vocab_size": 408}')
    first, second = vocabulary_problems(folders, 404)
    assert "differ (theta_0 400, theta_1 408, theta_2 400)" in first
    assert "but theta_0, theta_2 only 400" in second


@pytest.mark.parametrize(
    ("config", "cutoff_len", "said"),
    [
        ({"rope_scaling": None}, 4096, []),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 4096, []),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 10, ["type `dynamic`"]),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096}}, 4096, []),
        (
            {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096}},
            4097,
            ["`cutoff_len` is 4097, but saves/theta_0 changes", "Set `cutoff_len` to 4096 or less"],
        ),
        (
            {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 2048},
            4096,
            ["to 2048 or less"],
        ),
        ({"text_config": {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}}, 10, ["type `dynamic`"]),
    ],
)
def test_positions_that_depend_on_other_rows(tmp_path: Path, config: dict, cutoff_len: int, said: list[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    problems = position_problems("saves/theta_0", tmp_path, cutoff_len)
    assert len(problems) == bool(said)
    assert all(part in problems[0] for part in said)
