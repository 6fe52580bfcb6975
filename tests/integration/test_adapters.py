# SPDX-License-Identifier: Apache-2.0
"""Self-play with LoRA: adapters on one model are the players, and each says what it says as a whole model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.objectives import tpaw_loss
from llamafactory_tpaw.team.manifest import read_manifest
from tests.integration.adapters import RANK, merge, run_of, save_random_adapter, settings_of
from tests.runs import Project, Result


pytestmark = pytest.mark.integration
Played = tuple[Project, list[Result]]


@pytest.fixture(scope="module")
def merged(played_lora: Played, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """θ_0 to θ_3 as whole models."""
    project, _ = played_lora
    first, second, third = (project.root / "saves" / f"play_iter{index}" for index in range(3))
    folder = tmp_path_factory.mktemp("merged")
    chains = [[], [first], [second], [second, third]]
    return [merge(project.model, chain, folder / f"theta_{index}") for index, chain in enumerate(chains)]


def test_the_loop(played_lora: Played) -> None:
    project, results = played_lora
    manifests = [read_manifest(project.root / "saves" / f"play_iter{index}") for index in range(3)]
    for before, after in itertools.pairwise(manifests):
        assert after.policy["fingerprint"] == before.result["fingerprint"]
        assert after.players[-1]["fingerprint"] == before.result["fingerprint"]
    assert [len(manifest.players) for manifest in manifests] == [1, 2, 3]
    assert len({player["fingerprint"] for player in manifests[2].players}) == 3
    below = [[Path(part["path"]).name for part in manifest.result["below"]] for manifest in manifests]
    base = project.model.name
    assert below == [[base], [base], [base, "play_iter1"]], "iteration 1 goes on with an adapter, 2 begins one"
    for index, result in enumerate(results):
        assert not list((project.root / "saves" / f"play_iter{index}").glob("model*.safetensors"))
        assert f"theta_{index} (" in result.output
    generators = [manifest.triplets[-1]["generator"] for manifest in manifests]
    assert generators == [manifest.policy["fingerprint"] for manifest in manifests]


def test_rewards_are_zero_before_the_first_update(played_lora: Played) -> None:
    project, _ = played_lora
    for index in range(3):
        first = project.history(f"play_iter{index}")[0]
        assert first[f"rewards/target/theta_{index}"] == pytest.approx(0.0, abs=1e-4)
        assert all(abs(first[f"rewards/target/theta_{other}"]) > 1e-2 for other in range(index))


class Scores:
    """Log-probs of some sequences under players that are opened one after the other."""

    def __init__(self, run: Any, tokenizer: Any, rows: Any) -> None:
        from llamafactory_tpaw.team.scorer import TeamScorer

        self.scorer, self.rows = TeamScorer(run, tokenizer), rows

    def of(self, members: list[Any]) -> torch.Tensor:
        """Sums (S, J)."""
        columns = []
        for member, following in zip(members, [*members[1:], None], strict=True):
            with self.scorer.players.open(member, following) as model:
                shortcuts = self.scorer.shortcuts_of(model)
                columns.append(self.scorer.score_rows(model, self.rows, shortcuts)[0].clone())
        return torch.stack(columns, dim=1)


def team_settings(project: Project, **changes: Any) -> dict[str, Any]:
    """Iteration 3 of the played run: θ_1 to θ_3 play, the last two with adapters of their own."""
    model, names = str(project.model), [f"saves/play_iter{index}" for index in range(3)]
    players = [f"{model}+{names[0]}", f"{model}+{names[1]}"]
    return settings_of(project, 3, *names[1:], players=[model, *players], **changes)


def members_of(run: Any, names: list[str]) -> list[Any]:
    from llamafactory_tpaw.arguments.start import Start
    from llamafactory_tpaw.team.members import member_of
    from llamafactory_tpaw.team.players import Player

    start = Start(run.model.model_name_or_path)
    store = Path(run.finetuning.tpaw_cache_dir)
    chains = [start.parse(name) for name in names]
    players = [Player(0, (model, *adapters)[-1], (model, *adapters)[:-1]) for model, adapters in chains]
    return [member_of(player, run.model, store) for player in players]


@pytest.fixture
def rows() -> Any:
    from llamafactory_tpaw.data.layout import Row

    generator = np.random.default_rng(0)
    return [
        Row(generator.integers(5, 300, 9, dtype=np.int32), [generator.integers(5, 300, 12, dtype=np.int32)])
        for _ in range(6)
    ]


@pytest.mark.parametrize("new_adapter", [False, True])
def test_switched_players_say_what_whole_models_say(
    played_lora: Played, merged: list[Path], rows: Any, new_adapter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory_tpaw.lf import facade
    from llamafactory_tpaw.team.members import load_encoder

    project, _ = played_lora
    run = run_of(project, team_settings(project, create_new_adapter=new_adapter))
    model, names = str(project.model), [f"saves/play_iter{index}" for index in range(3)]
    chains = [model, f"{model}+{names[0]}", f"{model}+{names[1]}", f"{model}+{names[1]}+{names[2]}"]
    loads, load_model = [], facade.load_model
    monkeypatch.setattr(facade, "load_model", lambda *args: loads.append(args) or load_model(*args))
    tokenizer, _, _ = load_encoder(run)
    scores = Scores(run, tokenizer, rows)
    switched = scores.of(members_of(run, chains))
    assert len(loads) == (2 if new_adapter else 1), "adapters are switched on one model as far as it serves"
    whole = scores.of(members_of(run, [str(folder) for folder in merged]))
    assert torch.allclose(switched, whole, rtol=1e-5, atol=1e-4)
    again = scores.of(members_of(run, [chains[2], chains[0], chains[1]]))
    assert torch.allclose(again, switched[:, [2, 0, 1]], rtol=1e-5, atol=1e-4), "in any order"
    for one in range(4):
        for other in range(one):
            assert (switched[:, one] - switched[:, other]).abs().min() > 1e-2, "all players differ"
    losses = [tpaw_loss(team[::2, 3], team[1::2, 3], team[::2, :3], team[1::2, :3]).loss for team in (switched, whole)]
    assert losses[0] == pytest.approx(losses[1].item(), abs=1e-4)


def test_players_on_the_policys_model(played_lora: Played, rows: Any, tmp_path: Path) -> None:
    """Three adapter players take no more memory than their adapters, and leave the policy as it was."""
    from peft import PeftModel

    from llamafactory_tpaw.data.layout import lay_out
    from llamafactory_tpaw.team.loading import load_policy
    from llamafactory_tpaw.team.members import load_encoder
    from llamafactory_tpaw.team.online import OnlineTeam
    from llamafactory_tpaw.team.scorer import TeamScorer

    project, _ = played_lora
    model, names = str(project.model), [f"saves/play_iter{index}" for index in range(2)]
    settings = settings_of(project, 2, names[1], players=[model, f"{model}+{names[0]}"])
    run = run_of(project, settings)
    tokenizer, _, _ = load_encoder(run)
    scorer = TeamScorer(run, tokenizer)
    team = members_of(run, [model, f"{model}+{names[0]}", f"{model}+{names[1]}"])
    policy = load_policy(run, tokenizer)
    alone, trained = _bytes(policy), _trained(policy)
    online = OnlineTeam(scorer, team, policy, team[-1])
    assert all(model is policy for model, _ in online.players)
    adapter = sum(weight.nbytes for weight in trained.values())
    assert _bytes(policy) == alone + 2 * adapter, "the model itself plays with its adapter off"
    policy.train()
    batch = lay_out(rows, pad_token_id=0)
    scores = online.score(batch)
    expected = Scores(run, tokenizer, rows).of(team)
    assert torch.allclose(scores, expected, rtol=1e-5, atol=1e-4)
    assert policy.training
    assert _trained(policy).keys() == trained.keys(), "only the policy's own adapter is trained"
    assert policy.active_adapter == "default"
    policy.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [], "players are not saved with it"
    assert isinstance(policy, PeftModel)


KINDS = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "whole modules": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_adapters(played_lora: Played, rows: Any, tmp_path: Path, kind: str) -> None:
    """Opened one after the other, on the policy's model, or merged: each adapter makes one player."""
    from llamafactory_tpaw.data.layout import lay_out
    from llamafactory_tpaw.team.loading import load_policy
    from llamafactory_tpaw.team.members import load_encoder
    from llamafactory_tpaw.team.online import OnlineTeam
    from llamafactory_tpaw.team.scorer import TeamScorer

    project, _ = played_lora
    model, first = str(project.model), "saves/play_iter0"
    adapter = save_random_adapter(project.model, tmp_path / "adapter", **KINDS[kind])
    run = run_of(project, settings_of(project, 1, first, players=[model]))
    tokenizer, _, _ = load_encoder(run)
    names = [model, f"{model}+{adapter}", f"{model}+{first}"]
    whole = [
        merge(project.model, [adapter], tmp_path / "merged"),
        merge(project.model, [project.root / first], tmp_path / "0"),
    ]
    team = members_of(run, names)
    expected = Scores(run, tokenizer, rows).of(members_of(run, [model, *map(str, whole)]))
    assert torch.allclose(Scores(run, tokenizer, rows).of(team), expected, rtol=1e-5, atol=1e-4)
    assert (expected[:, 1] - expected[:, 0]).abs().min() > 1e-2
    policy = load_policy(run, tokenizer)
    online = OnlineTeam(TeamScorer(run, tokenizer), team, policy, team[-1])
    for _ in range(2):
        assert torch.allclose(online.score(lay_out(rows, pad_token_id=0)), expected, rtol=1e-5, atol=1e-4)


def _bytes(model: torch.nn.Module) -> int:
    storages = {
        weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in model.parameters()
    }
    return sum(storages.values())


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def test_online_and_cached_players_give_one_loss(
    played_lora: Played, train_here: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    project, _ = played_lora
    model, names = str(project.model), [f"saves/play_iter{index}" for index in range(2)]
    players = [model, f"{model}+{names[0]}"]
    histories = []
    for reference in ("cached", "online"):
        changes = {"output_dir": str(tmp_path / reference), "tpaw_reference": reference, "max_steps": 3}
        train_here(project, settings_of(project, 2, names[1], players=players, **changes), history=False)
        histories.append(read_history(tmp_path / reference))
        assert not [path for path in (tmp_path / reference).iterdir() if path.is_dir()]
    assert [entry["loss"] for entry in histories[0]] == pytest.approx(
        [entry["loss"] for entry in histories[1]], abs=1e-4
    )


def test_a_new_adapter_begins_alike_whether_players_were_scored_or_not(
    played_lora: Played, train_here: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    project, _ = played_lora
    results = []
    for turn in range(2):
        folder = tmp_path / str(turn)
        changes = {"output_dir": str(folder), "tpaw_cache_dir": str(tmp_path / "cache"), "max_steps": 2}
        train_here(project, settings_of(project, 0, players=[], **changes), history=False)
        results.append(load_file(folder / "adapter_model.safetensors"))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())
    assert results[0]["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"].shape[0] == RANK


def read_history(folder: Path) -> list[dict[str, Any]]:
    """What training logged in a folder anywhere."""
    state = json.loads((folder / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


def test_an_adapter_put_on_what_it_was_not_trained_on_is_refused(played_lora: Played) -> None:
    from llamafactory_tpaw.errors import Findings
    from llamafactory_tpaw.team.members import load_team

    project, _ = played_lora
    model, names = str(project.model), [f"saves/play_iter{index}" for index in range(3)]
    settings = settings_of(project, 3, names[2], players=[model, f"{model}+{names[0]}", f"{model}+{names[1]}"])
    with pytest.raises(DataError) as caught, Findings() as findings:
        load_team(run_of(project, settings), findings)
    (problem,) = caught.value.problems
    assert "theta_3: saves/play_iter2 was trained on" in problem
    assert problem.endswith("saves/play_iter1+saves/play_iter2`.")
