# SPDX-License-Identifier: Apache-2.0
"""Players and opponents with their weights: who is fingerprinted, and what the players of a team must share."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llamafactory_tpaw.arguments.parsed import RunArguments
from llamafactory_tpaw.errors import DataError, Findings
from llamafactory_tpaw.team.fingerprint import fingerprint_checkpoint
from llamafactory_tpaw.team.manifest import write_manifest
from llamafactory_tpaw.team.members import (
    Member,
    check_positions,
    load_encoder,
    load_members,
    load_opponent,
    load_team,
    opponent_fingerprint,
)
from llamafactory_tpaw.team.players import Player
from tests import encoders, tiny
from tests.runs import Project
from tests.unit.team.checkpoints import save_single, write_config
from tests.unit.team.test_manifest import make_manifest


THETAS = ("theta_0", "theta_1")


@pytest.fixture
def thetas(tiny_model: Path, elsewhere: Path) -> None:
    """θ_0 and θ_1, which was trained from it."""
    shutil.copytree(tiny_model, "theta_0")
    tiny.save_model(Path("theta_1"), seed=1)
    first, second = (fingerprint_checkpoint(Path(f"theta_{theta}"), Path("cache")) for theta in range(2))
    policy = {"name": "theta_0", "path": "../theta_0", "fingerprint": first}
    write_manifest("theta_1", make_manifest(policy=policy, result={"name": "theta_1", "fingerprint": second}))


@pytest.fixture
def run_of(thetas: None, tmp_path: Path) -> Callable[..., RunArguments]:
    """Parse the settings of iteration 1 with changes."""
    given = {"model_name_or_path": "theta_1", "tpaw_players": "theta_0,theta_1", "tpaw_cache_dir": "cache"}
    return functools.partial(encoders.parse, Project(tmp_path, Path("theta_0")), 1, **given)


def test_team_and_policy(run_of: Callable[..., RunArguments]) -> None:
    team, policy = load_members(run_of())
    assert [(member.player.name, str(member.folder)) for member in team] == [(name, name) for name in THETAS]
    assert policy == team[-1]
    assert team[0].fingerprint != team[1].fingerprint
    shutil.rmtree("theta_0")
    assert load_members(run_of(tpaw_team_size=1)) == ([policy], policy)
    assert load_members(run_of(tpaw_objective="tspin", tpaw_proto="p")) == ([], policy)


def test_what_does_not_keep_from_checking_is_found_together(run_of: Callable[..., RunArguments]) -> None:
    shutil.rmtree("theta_0")
    tiny.save_model(Path("theta_0"), seed=7, vocab_size=400)
    with pytest.raises(DataError) as caught, Findings() as findings:
        load_team(run_of(), findings)
    parent, vocabulary = caught.value.problems
    assert parent.startswith("theta_1 (theta_1) was trained from a checkpoint with fingerprint")
    assert vocabulary.startswith("The players' vocabularies differ (theta_0 400, theta_1 395)")


@pytest.fixture
def with_opponent(run_of: Callable[..., RunArguments]) -> Callable[..., Member | None]:
    """Load the opponent of a run."""

    def load(**changes: Any) -> Member | None:
        run = run_of(tpaw_opponent_model="weak", **changes)
        return load_opponent(run, Member(Player(1, "theta_1"), Path("theta_1"), "p"), load_encoder(run)[2])

    return load


def test_an_opponent_here_reads_the_same_tokens_or_is_served(with_opponent: Callable[..., Member | None]) -> None:
    with pytest.raises(DataError, match="weak"):
        with_opponent()
    assert opponent_fingerprint("weak", Path("cache")) is opponent_fingerprint(None, Path("cache")) is None
    shutil.copytree("theta_0", "weak")
    member = with_opponent()
    fingerprint = fingerprint_checkpoint(Path("theta_0"), Path("cache"))
    assert (member.folder, member.fingerprint, member.player.theta) == (Path("weak"), fingerprint, 1)
    assert opponent_fingerprint("weak", Path("cache")) == fingerprint
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_tokens(["She earns"])
    tokenizer.save_pretrained("weak")
    named = r"the opponent \(`tpaw_opponent_model`\) \(weak\) has another tokenizer"
    with pytest.raises(DataError, match=named) as caught:
        with_opponent()
    assert "serve the opponent and use `tpaw_engine: openai`" in str(caught.value)
    served = {"tpaw_engine": "openai", "tpaw_engine_url": "http://localhost:1/v1"}
    assert with_opponent(**served).folder == Path("weak")
    shutil.rmtree("weak")
    assert with_opponent(**served) is None, "only the server has it"


LONG = {"rope_type": "longrope", "original_max_position_embeddings": 4096}


def positions_of(folder: Path, cutoff_len: int, rope_scaling: str | None = None) -> Findings:
    found, model = Findings(), SimpleNamespace(model_name_or_path="saves/theta_0", rope_scaling=rope_scaling)
    check_positions(SimpleNamespace(model=model, data=SimpleNamespace(cutoff_len=cutoff_len)), folder, found)
    return found


@pytest.mark.parametrize(
    ("config", "cutoff_len", "said"),
    [
        ({"rope_scaling": {"type": "dynamic"}, "max_position_embeddings": 99}, 100, "positions (`dynamic`)"),
        ({"text_config": {"rope_parameters": {"full": {"rope_type": "dynamic"}}}}, 10, "positions (`dynamic`)"),
        ({"rope_parameters": LONG}, 4096, ""),
        ({"rope_parameters": LONG}, 4097, "`cutoff_len` is 4097, but saves/theta_0 changes"),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 2048}, 4096, "to 2048 or less"),
    ],
)
def test_positions_that_depend_on_other_rows(tmp_path: Path, config: dict, cutoff_len: int, said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = positions_of(tmp_path, cutoff_len)
    assert [said in problem for problem in found.problems] == [True] * bool(said)
    assert found.warnings == []


@pytest.mark.parametrize(
    ("config", "tensor", "problems", "warnings"),
    [
        ({"n_positions": 64}, "wpe.weight", 1, 0),
        ({"max_position_embeddings": 64}, "model.decoder.embed_positions.weight", 1, 0),
        ({"max_position_embeddings": 64}, "model.norm.weight", 0, 1),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": 4.0}}, "norm.weight", 0, 0),
        ({"max_position_embeddings": 65}, "wpe.weight", 0, 0),
        ({}, "wpe.weight", 0, 0),
    ],
)
def test_positions_that_a_model_does_not_have(
    tmp_path: Path, config: dict, tensor: str, problems: int, warnings: int
) -> None:
    write_config(save_single(tmp_path, {tensor: torch.zeros(66, 8)}), config)
    found = positions_of(tmp_path, 65)
    assert (len(found.problems), len(found.warnings)) == (problems, warnings)
    assert all(
        text.startswith("`cutoff_len` is 65, but saves/theta_0 has 64 positions")
        for text in [*found.problems, *found.warnings]
    )
    assert positions_of(tmp_path, 65, rope_scaling="linear").warnings == []
    assert positions_of(tmp_path / "hub" / "model", 65).problems == {}
