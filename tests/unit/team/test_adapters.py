# SPDX-License-Identifier: Apache-2.0
"""Adapters on disk: how players are spelled, what makes an adapter itself, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llamafactory_tpaw.arguments.start import Start, is_adapter
from llamafactory_tpaw.errors import ConfigError, DataError
from llamafactory_tpaw.team.compatibility import adapter_fit_problems
from llamafactory_tpaw.team.fingerprint import chain_fingerprints, check_checkpoint_complete, fingerprint_checkpoint
from llamafactory_tpaw.team.members import member_of
from llamafactory_tpaw.team.players import Player, list_players, player_problems
from tests.unit.team.checkpoints import save_single


MODULE = "model.layers.0.up_proj"
NO_HUB: Any = SimpleNamespace()


def save_model(folder: Path, rows: int = 6, columns: int = 4) -> Path:
    return save_single(folder, {f"{MODULE}.weight": torch.ones(rows, columns)})


def save_adapter(folder: Path, rows: int = 6, columns: int = 4, fill: float = 1.0, **config: Any) -> Path:
    folder.mkdir(parents=True)
    tensors = {"lora_A": torch.full((2, columns), fill), "lora_B": torch.full((rows, 2), fill)}
    named = {f"base_model.model.{MODULE}.{half}.weight": tensor for half, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj", "q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model `m` and adapters `a` and `b`."""
    monkeypatch.chdir(tmp_path)
    save_model(Path("m"))
    save_adapter(Path("a"))
    save_adapter(Path("b"), fill=2.0)
    return tmp_path


def test_how_players_are_spelled(place: Path) -> None:
    start = Start("m", ("a", "b"))
    assert start.parse("m") == ("m", ())
    assert start.parse("m+a") == ("m", ("a",))
    assert start.parse("org/m + a+b") == ("org/m", ("a", "b"))
    assert start.parse("a") == ("m", ("a",)), "an adapter alone takes the run's model"
    assert start.parse("later") == ("later", ())
    assert Start("m", ("later",)).parse("later") == ("m", ("later",))
    Path("m+a").mkdir()
    assert start.parse("m+a") == ("m+a", ()), "a folder is what it is called"
    assert Start("m", finetuning_type="full").parse("x+y") == ("x+y", ())
    assert start.spelled == "m+a+b"


def test_what_the_next_iteration_starts_from() -> None:
    first = Start("m").after("i0")
    assert first.spelled == "m+i0"
    assert first.after("i1").spelled == "m+i1"
    assert first._replace(new_adapter=True).after("i1").spelled == "m+i0+i1"
    assert Start("m", ("a", "b")).after("i0").spelled == "m+a+i0"
    assert Start("m", finetuning_type="freeze").after("i0").spelled == "i0"
    keys = {"model_name_or_path": "m", "adapter_name_or_path": "a, b", "create_new_adapter": "true"}
    assert Start.of(keys) == Start("m", ("a", "b"), "lora", True)


def keys(iteration: int, players: list[str] | None) -> SimpleNamespace:
    return SimpleNamespace(tpaw_iteration=iteration, tpaw_players=players, tpaw_team_size=3, tpaw_objective="tpaw")


def test_the_team(place: Path) -> None:
    players = list_players(keys(2, ["m", "a", "m+b"]), Start("m", ("b",)))
    assert players == [Player(0, "m"), Player(1, "a", ("m",)), Player(2, "b", ("m",))]
    assert [player.spelled for player in players] == ["m", "m+a", "m+b"]
    assert list_players(keys(0, None), Start("m", ("a",))) == [Player(0, "a", ("m",))], "never the model without it"


def test_the_model_without_its_adapter_is_no_policy(place: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        list_players(keys(0, ["m"]), Start("m", ("a",)))
    (problem,) = caught.value.problems
    assert "`adapter_name_or_path: a`: `m+a`" in problem


def test_fingerprints(place: Path) -> None:
    store = place / "store"
    model, first, second = chain_fingerprints([Path("m"), Path("a"), Path("b")], store)
    assert len({model, first, second, *chain_fingerprints([Path("m"), Path("b"), Path("a")], store)}) == 5
    own = fingerprint_checkpoint(Path("a"), store)
    save_adapter(Path("same"), target_modules=["q_proj", "up_proj"], peft_version="99", base_model_name_or_path="x")
    assert fingerprint_checkpoint(Path("same"), store) == own
    for number, change in enumerate([{"lora_alpha": 8}, {"use_rslora": True}, {"use_dora": True}, {"fill": 3.0}]):
        assert fingerprint_checkpoint(save_adapter(Path(f"other{number}"), **change), store) != own
    config = json.loads(Path("a/adapter_config.json").read_text())
    Path("a/adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 16}))
    assert fingerprint_checkpoint(Path("a"), store) != own, "what is kept is of these files only"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "OFT"}, "is an adapter of kind OFT"),
        ({"bias": "all"}, "trains biases"),
        ({"init_lora_weights": "pissa_niter_16"}, "began by changing the model"),
    ],
)
def test_adapters_that_cannot_be_players(place: Path, config: dict[str, Any], said: str) -> None:
    (problem,) = check_checkpoint_complete(save_adapter(Path("c"), **config))
    assert problem.startswith(f"c {said}")
    assert "llamafactory-cli export" in problem


def test_a_damaged_adapter(place: Path) -> None:
    Path("a/adapter_model.safetensors").write_bytes(b"short")
    (problem,) = check_checkpoint_complete(Path("a"))
    assert "is cut off or damaged" in problem
    Path("a/adapter_model.safetensors").unlink()
    (problem,) = check_checkpoint_complete(Path("a"))
    assert "none of adapter_model.safetensors, adapter_model.bin is there" in problem
    assert is_adapter("a")


def test_models_and_adapters_in_each_others_place(place: Path) -> None:
    assert player_problems([Player(0, "m"), Player(0, "a", ("m",))]) == []
    (problem,) = player_problems([Player(0, "a")])
    assert "a is an adapter, but a model is asked for" in problem
    save_model(Path("n"))
    (problem,) = player_problems([Player(0, "m", ("n",))])
    assert "m is a whole model, but stands where an adapter is asked for" in problem


def fit(place: Path, *names: str) -> list[str]:
    member = member_of(Player(1, names[-1], names[:-1]), NO_HUB, place / "store")
    return adapter_fit_problems([member], place / "store")


def test_adapters_of_other_shapes_or_models(place: Path) -> None:
    assert fit(place, "m", "a") == fit(place, "m", "a", "b") == []
    save_adapter(Path("wide"), columns=5)
    (problem,) = fit(place, "m", "wide")
    assert problem.startswith(
        f"theta_1: wide does not fit m: `{MODULE}` is 6 x 4 there, and the adapter is for any x 5."
    )
    save_single(Path("unlike"), {"h.0.weight": torch.ones(6, 4)})
    (problem,) = fit(place, "unlike", "a")
    assert "is an adapter of another kind of model than unlike" in problem
    save_model(Path("copy"))
    save_single(Path("changed"), {f"{MODULE}.weight": torch.zeros(6, 4)})
    save_adapter(Path("of_copy"), base_model_name_or_path="copy")
    assert fit(place, "m", "of_copy") == [], "the same weights in another folder"
    (problem,) = fit(place, "changed", "of_copy")
    assert "of_copy was trained on copy with fingerprint" in problem
    assert problem.endswith("write the player out: `copy+of_copy`.")


def test_resized_embeddings_are_refused(place: Path) -> None:
    folder = save_adapter(Path("resized"))
    save_file({f"base_model.model.{MODULE}.weight": torch.ones(8, 4)}, folder / "adapter_model.safetensors")
    (problem,) = fit(place, "m", "resized")
    assert "is 6 x 4 there, and the adapter is for 8 x 4" in problem


def test_a_config_that_is_no_object(place: Path) -> None:
    Path("a/adapter_config.json").write_text("[]")
    with pytest.raises(DataError, match="must hold a JSON object"):
        fingerprint_checkpoint(Path("a"), place / "store")
