# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints play, and how they are spelled; tests/integration/bad_input has the wrong ones."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from llamafactory_tpaw.arguments.start import Start
from llamafactory_tpaw.errors import ConfigError, DataError
from llamafactory_tpaw.lf import facade
from llamafactory_tpaw.team.manifest import write_manifest
from llamafactory_tpaw.team.members import Member, check_parents
from llamafactory_tpaw.team.players import Player, list_players, player_problems
from tests.unit.team.checkpoints import make_tensors, save_adapter, save_single
from tests.unit.team.test_manifest import make_manifest


WHOLE = Start("c", finetuning_type="full")


def keys(iteration: int, players: list[str] | None, team_size: int = 3, objective: str = "tpaw") -> SimpleNamespace:
    given = {"iteration": iteration, "players": players, "team_size": team_size, "objective": objective}
    return SimpleNamespace(**{f"tpaw_{name}": value for name, value in given.items()})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (keys(0, None), [(0, "c")]),
        (keys(1, ["b", "c"]), [(0, "b"), (1, "c")]),
        (keys(4, ["a", "b", "c"]), [(2, "a"), (3, "b"), (4, "c")]),
        (keys(2, ["a", "b", "c"], team_size=1), [(0, "a"), (1, "b"), (2, "c")]),
        (keys(3, None, objective="tspin"), [(3, "c")]),
        (keys(3, ["b", "c"], objective="tspin"), [(2, "b"), (3, "c")]),
        (keys(3, None, objective="iris"), [(3, "c")]),
    ],
)
def test_numbers_end_with_the_iteration(arguments: Any, expected: list[tuple[int, str]]) -> None:
    players = list_players(arguments, WHOLE)
    assert [(player.theta, player.path) for player in players] == expected
    assert players[-1].name == f"theta_{arguments.tpaw_iteration}"


@pytest.fixture
def adapters(elsewhere: Path) -> None:
    """A working folder with a model `m` and adapters `a` and `b`."""
    save_single(Path("m"), make_tensors())
    save_adapter(Path("a"))
    save_adapter(Path("b"), fill=2.0)


def test_how_players_with_adapters_are_spelled(adapters: None) -> None:
    start = Start("m", ("a", "b"))
    assert start.parse("m") == ("m", ())
    assert start.parse("m+a") == ("m", ("a",))
    assert start.parse("org/m + a+b") == ("org/m", ("a", "b"))
    assert start.parse("a") == ("m", ("a",)), "an adapter alone takes the run's model"
    assert start.parse("later") == ("later", ())
    assert Start("m", ("later",)).parse("later") == ("m", ("later",))
    assert Start("m", finetuning_type="full").parse("x+y") == ("x+y", ())
    players = list_players(keys(2, ["m", "a", "m+b"]), Start("m", ("b",)))
    assert players == [Player(0, "m"), Player(1, "a", ("m",)), Player(2, "b", ("m",))]
    assert list_players(keys(0, None), Start("m", ("a",))) == [Player(0, "a", ("m",))]
    with pytest.raises(ConfigError, match=r"must be theta_0, which is `m\+a`"):  # the model alone is no policy
        list_players(keys(0, ["m"]), Start("m", ("a",)))


def test_models_and_adapters_in_each_others_place(adapters: None) -> None:
    assert player_problems([Player(0, "m"), Player(0, "a", ("m",))]) == []
    (model, adapter) = player_problems([Player(0, "a"), Player(0, "m", ("a",))])
    assert "a is an adapter, but a model is asked for" in model
    assert "m is a whole model, but an adapter is asked for" in adapter


def test_a_checkpoint_on_the_way_may_play(tmp_path: Path) -> None:
    """It has no recorded fingerprint, but its parent is checked."""
    first, second = (Player(theta, str(save_single(tmp_path / f"theta_{theta}", make_tensors()))) for theta in (0, 1))
    policy = {"name": "theta_0", "path": "../theta_0", "fingerprint": "fp0"}
    write_manifest(second.path, make_manifest(status="checkpoint", step=5, policy=policy, result={}))
    assert player_problems([first, second]) == []
    newest = Member(second, Path(second.path), "fp1")
    check_parents([Member(first, Path(first.path), "fp0"), newest])
    with pytest.raises(DataError, match=r"theta_1 .* was trained from a checkpoint with fingerprint fp0"):
        check_parents([Member(first, Path(first.path), "other"), newest])


FILES = ["config.json", "tokenizer.json", "tpaw.json", "model.safetensors", "modeling.py", "pytorch_model.bin"]


@pytest.mark.parametrize("trusted", [False, True])
def test_what_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **k: asked.update(k) or str(tmp_path))
    monkeypatch.setattr(facade, "download_from_other_hub", lambda args: args.model_name_or_path, raising=False)
    model_args = SimpleNamespace(model_revision="main", cache_dir=None, hf_hub_token=None, trust_remote_code=trusted)
    assert Player(0, "org/model").places(model_args) == [tmp_path]
    taken = [name for name in FILES if any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])]
    assert taken == FILES[: 5 if trusted else 4]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(DataError, match=r"theta_0 is `org/model`, which is no folder here.*gone\. Correct the path\."):
        Player(0, "org/model").places(model_args)
    monkeypatch.setattr(facade, "download_from_other_hub", lambda args: str(tmp_path), raising=False)
    assert Player(0, "org/model").places(model_args) == [tmp_path], "LlamaFactory knows of other hubs"
