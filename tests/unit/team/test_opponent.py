# SPDX-License-Identifier: Apache-2.0
"""The weights of an opponent model, and who it is where only a server has it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.team.fingerprint import fingerprint_checkpoint
from llamafactory_tpaw.team.manifest import moved_manifest
from llamafactory_tpaw.team.members import Member
from llamafactory_tpaw.team.opponent import load_opponent, opponent_fingerprint, served_identity
from llamafactory_tpaw.team.players import Player
from tests import encoders, tiny
from tests.runs import Project
from tests.unit.team.test_manifest import make_manifest


if TYPE_CHECKING:
    from llamafactory_tpaw.arguments.parsed import RunArguments
    from llamafactory_tpaw.data.encoding import TurnEncoder


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunArguments:
    monkeypatch.chdir(tmp_path)
    run = encoders.parse(Project(tmp_path, tiny_model), tpaw_opponent_model="weak")
    run.finetuning.tpaw_cache_dir = "cache"
    return run


@pytest.fixture
def encoder(run: RunArguments) -> TurnEncoder:
    return encoders.build_encoder(run)


def load(run: RunArguments, encoder: TurnEncoder) -> Member | None:
    policy = Member(Player(1, run.model.model_name_or_path), Path(run.model.model_name_or_path), "p")
    return load_opponent(run, policy, encoder)


def test_a_checkpoint_here(run: RunArguments, encoder: TurnEncoder, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, "weak")
    member = load(run, encoder)
    fingerprint = fingerprint_checkpoint(tiny_model, Path("cache"))
    assert (member.folder, member.fingerprint, member.player.theta) == (Path("weak"), fingerprint, 1)
    assert opponent_fingerprint("weak", Path("cache")) == fingerprint
    run.finetuning.tpaw_opponent_model = None
    assert load(run, encoder) is None


def test_a_checkpoint_that_is_not_there(run: RunArguments, encoder: TurnEncoder) -> None:
    with pytest.raises(DataError, match="`tpaw_opponent_model: weak`: weak"):
        load(run, encoder)
    assert opponent_fingerprint("weak", Path("cache")) is opponent_fingerprint(None, Path("cache")) is None


def test_another_tokenizer_needs_a_server(run: RunArguments, encoder: TurnEncoder, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, "weak")
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_tokens(["She earns"])
    tokenizer.save_pretrained("weak")
    with pytest.raises(
        DataError, match=r"the opponent \(`tpaw_opponent_model`\) \(weak\) has another tokenizer"
    ) as caught:
        load(run, encoder)
    assert "serve the opponent and use `tpaw_engine: openai`" in str(caught.value)
    run.finetuning.tpaw_engine = "openai"
    assert load(run, encoder).folder == Path("weak")


def test_a_model_that_only_a_server_has(run: RunArguments, encoder: TurnEncoder) -> None:
    run.finetuning.tpaw_engine = "openai"
    assert load(run, encoder) is None
    assert served_identity("weak") == served_identity("weak") != served_identity("weaker")
    assert served_identity("weak").startswith("served:")


def test_its_place_moves_with_the_manifest(tmp_path: Path) -> None:
    for folder in ("weak", "iter0"):
        (tmp_path / folder).mkdir()
    sources = [{"entry": "d0", "path": "../d0.jsonl", "opponent": "../weak"}, {"entry": "d1", "opponent": "served"}]
    moved = moved_manifest(make_manifest(triplets=sources), tmp_path / "iter0", tmp_path / "iter0" / "checkpoint-1")
    assert [source["opponent"] for source in moved.triplets] == ["../../weak", "served"]
