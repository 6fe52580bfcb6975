# SPDX-License-Identifier: Apache-2.0
"""Self-play with LoRA: adapters on one model are the players, and each says what it says as a whole model."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llamafactory_tpaw.arguments.parsed import RunArguments, parse_single_process
from llamafactory_tpaw.arguments.start import Start
from llamafactory_tpaw.data.layout import Row, lay_out
from llamafactory_tpaw.errors import DataError, Findings
from llamafactory_tpaw.lf import facade
from llamafactory_tpaw.team.loading import load_policy
from llamafactory_tpaw.team.manifest import read_manifest
from llamafactory_tpaw.team.members import Member, load_encoder, load_team, member_of
from llamafactory_tpaw.team.online import OnlineTeam
from llamafactory_tpaw.team.players import Player
from llamafactory_tpaw.team.scorer import TeamScorer
from llamafactory_tpaw.team.shortcuts import find_shortcuts
from tests.integration.pairs import add_pairs, make_pairs
from tests.runs import Project, Result


pytestmark = pytest.mark.integration
Played = tuple[Project, list[Result]]
Train = Callable[..., list[dict[str, Any]]]
RANK = 4
# Far from the base, so that every player says something else.
LORA: dict[str, Any] = {"finetuning_type": "lora", "lora_rank": RANK, "lora_target": "all", "learning_rate": 3e-2}
KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True, "tpaw_reference": "online"},
    "rslora": {"use_rslora": True},
    "whole modules": {"additional_target": "lm_head"},
    "whole modules, online": {"additional_target": "lm_head", "tpaw_reference": "online"},
    "8 bits": {"quantization_bit": 8, "quantization_method": "bnb"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
}
# Of a log-prob of 8-bit weights as much is rounding.
ROUNDING = {"8 bits": 0.02}
REWARD_SCALE = 0.1


def settings_of(
    project: Project, iteration: int, *adapters: str, players: list[str], **changes: Any
) -> dict[str, Any]:
    """Settings of an iteration from the model with these adapters, and the players before it."""
    theta = {"model_name_or_path": str(project.model), "adapter_name_or_path": ",".join(adapters) or None}
    theta["tpaw_players"] = ",".join([*players, "+".join([str(project.model), *adapters])])
    return project.settings(iteration, **LORA | theta | changes)


def run_of(project: Project, settings: dict[str, Any]) -> RunArguments:
    """Parse settings as a command does, in the project's folder."""
    os.chdir(project.root)
    return parse_single_process(settings)


def merge(model: Path, adapters: list[Path], folder: Path) -> Path:
    """Save a model with adapters merged into it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = AutoModelForCausalLM.from_pretrained(model)
    for adapter in adapters:
        merged = PeftModel.from_pretrained(merged, adapter).merge_and_unload()
    merged.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def played_lora(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Project, list[Result]]:
    """A run with LoRA of iterations 0, 1, 2: a new adapter, the same one continued, another one on it."""
    project = Project(tmp_path_factory.mktemp("played_lora"), tiny_model)
    model, first, second = str(tiny_model), "saves/play_iter0", "saves/play_iter1"
    given = [
        settings_of(project, 0, players=[]),
        settings_of(project, 1, first, players=[model]),
        settings_of(project, 2, second, players=[model, f"{model}+{first}"], create_new_adapter=True),
    ]
    results = [project.train(settings, name=f"iter{index}.yaml") for index, settings in enumerate(given)]
    for result in results:
        assert result.code == 0, result.output
    return project, results


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
        reward = project.history(f"play_iter{index}")[0][f"rewards/target/theta_{index}"]
        assert reward == pytest.approx(0.0, abs=1e-4), "before the first update"
        assert not list((project.root / "saves" / f"play_iter{index}").glob("model*.safetensors"))
        assert f"theta_{index} (" in result.output
    generators = [manifest.triplets[-1]["generator"] for manifest in manifests]
    assert generators == [manifest.policy["fingerprint"] for manifest in manifests]


def scores(run: RunArguments, tokenizer: Any, rows: list[Row], names: list[str]) -> torch.Tensor:
    """Log-probs of the rows under players that are opened one after the other: (S, J)."""
    scorer, columns, members = TeamScorer(run, tokenizer), [], members_of(run, names)
    for member, following in zip(members, [*members[1:], None], strict=True):
        with scorer.players.open(member, following) as model:
            shortcuts = find_shortcuts(model, run.training, run.finetuning)
            columns.append(scorer.score_rows(model, rows, shortcuts)[0].clone())
    return torch.stack(columns, dim=1)


def members_of(run: RunArguments, names: list[str]) -> list[Member]:
    chains = [(model, *adapters) for model, adapters in map(Start(run.model.model_name_or_path).parse, names)]
    players = [Player(0, chain[-1], chain[:-1]) for chain in chains]
    return [member_of(player, run.model, Path(run.finetuning.tpaw_cache_dir)) for player in players]


@pytest.fixture
def rows() -> list[Row]:
    generator = np.random.default_rng(0)
    return [
        Row(generator.integers(5, 300, 9, dtype=np.int32), [generator.integers(5, 300, 12, dtype=np.int32)])
        for _ in range(6)
    ]


@pytest.mark.parametrize("new_adapter", [False, True])
def test_switched_players_say_what_whole_models_say(
    played_lora: Played, merged: list[Path], rows: list[Row], new_adapter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = played_lora
    model, names = str(project.model), [f"saves/play_iter{index}" for index in range(3)]
    chains = [model, f"{model}+{names[0]}", f"{model}+{names[1]}", f"{model}+{names[1]}+{names[2]}"]
    settings = settings_of(project, 3, *names[1:], players=chains[:3], create_new_adapter=new_adapter)
    run = run_of(project, settings)
    loads, load_model = [], facade.load_model
    monkeypatch.setattr(facade, "load_model", lambda *args: loads.append(args) or load_model(*args))
    tokenizer, _, _ = load_encoder(run)
    switched = scores(run, tokenizer, rows, chains)
    assert len(loads) == (4 if new_adapter else 2), "adapters are switched on one model where it is the same"
    whole = scores(run, tokenizer, rows, [str(folder) for folder in merged])
    assert torch.allclose(switched, whole, rtol=1e-5, atol=1e-4)
    again = scores(run, tokenizer, rows, [chains[2], chains[0], chains[1]])
    assert torch.allclose(again, switched[:, [2, 0, 1]], rtol=1e-5, atol=1e-4), "in any order"
    for one, other in itertools.combinations(range(4), 2):
        assert (switched[:, one] - switched[:, other]).abs().min() > 1e-2, "all players differ"


def test_players_on_the_policys_model(played_lora: Played, rows: list[Row], tmp_path: Path) -> None:
    """Three adapter players take no more memory than their adapters, and leave the policy as it was."""
    project, _ = played_lora
    model, names = str(project.model), [f"saves/play_iter{index}" for index in range(2)]
    chains = [model, f"{model}+{names[0]}", f"{model}+{names[1]}"]
    run = run_of(project, settings_of(project, 2, names[1], players=chains[:2]))
    tokenizer, _, _ = load_encoder(run)
    team, policy = members_of(run, chains), load_policy(run, tokenizer)
    alone = sum(weight.nbytes for weight in policy.parameters())
    trained = {name: weight.nbytes for name, weight in policy.named_parameters() if weight.requires_grad}
    online = OnlineTeam(TeamScorer(run, tokenizer), team, policy, team[-1])
    assert all(model is policy for model, _ in online.players)
    held = sum(weight.nbytes for weight in policy.parameters())
    assert held == alone + 2 * sum(trained.values()), "the model itself plays with its adapter off"
    policy.train()
    found = online.score(lay_out(rows, pad_token_id=0))
    assert torch.allclose(found, scores(run, tokenizer, rows, chains), rtol=1e-5, atol=1e-4)
    assert policy.training
    still = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    assert still == [*trained], "only the policy's own adapter is trained"
    assert policy.active_adapter == "default"
    policy.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "players are not saved with it"


def test_a_new_adapter_begins_alike_whether_players_were_scored_or_not(
    played_lora: Played, train_here: Train, tmp_path: Path
) -> None:
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


def test_an_adapter_put_on_what_it_was_not_trained_on_is_refused(played_lora: Played) -> None:
    project, _ = played_lora
    model, names = str(project.model), [f"saves/play_iter{index}" for index in range(3)]
    settings = settings_of(project, 3, names[2], players=[model, f"{model}+{names[0]}", f"{model}+{names[1]}"])
    with pytest.raises(DataError) as caught, Findings() as findings:
        load_team(run_of(project, settings), findings)
    (problem,) = caught.value.problems
    assert problem.startswith("theta_3 (saves/play_iter2) has fingerprint")
    assert "+saves/play_iter1+saves/play_iter2`, or repeat iteration 2" in problem


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    project = Project(tmp_path, tiny_model)
    for index in range(2):
        add_pairs(project, f"pairs{index}", make_pairs(8, seed=index))
    return project


@pytest.mark.parametrize("kind", KINDS)
def test_two_iterations(project: Project, train_here: Train, kind: str) -> None:
    if kind == "8 bits":
        pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    model, first = str(project.model), "saves/play_iter0"
    common = dict.fromkeys(("tpaw_prompts", "temperature", "top_p", "top_k", "max_new_tokens")) | KINDS[kind]
    given = [
        settings_of(project, 0, players=[], dataset="pairs0", **common),
        settings_of(project, 1, first, players=[model], dataset="pairs0,pairs1", **common),
    ]
    if kind == "freeze":
        start = {"model_name_or_path": first, "adapter_name_or_path": None, "tpaw_players": f"{model},{first}"}
        given[1] = {key: value for key, value in (given[1] | start).items() if value is not None}
    for settings in given:
        history = train_here(project, settings)
        assert all(math.isfinite(entry["loss"]) for entry in history)
    rounding = ROUNDING.get(kind, 1e-5) * REWARD_SCALE * abs(history[0]["logps/target"])
    assert abs(history[0]["rewards/target/theta_1"]) <= rounding, "theta_1 is what is trained"
    assert abs(history[0]["rewards/target/theta_0"]) > 0.5 > 2 * rounding, "theta_0 is another one"
