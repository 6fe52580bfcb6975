# SPDX-License-Identifier: Apache-2.0
"""Players that are too few, in the wrong order, or do not read text alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.runs import Project

from .conftest import Refuse
from .spoiling import anew, change_json, cut


pytestmark = pytest.mark.integration


def test_wrong_order(project: Project, refuse: Refuse) -> None:
    message = refuse(anew(project, 2, tpaw_players="saves/play_iter0,saves/sft,saves/play_iter1"))
    assert "has saves/sft as theta_1, but it has no tpaw.json" in message
    assert "write the players oldest first" in message


def test_wrong_order_of_outputs(project: Project, refuse: Refuse) -> None:
    message = refuse(
        anew(
            project,
            2,
            tpaw_players="saves/sft,saves/play_iter1,saves/play_iter0",
            model_name_or_path="saves/play_iter0",
        )
    )
    assert "has saves/play_iter1 as theta_1, but its tpaw.json says that it is theta_2" in message
    assert "has saves/play_iter0 as theta_2, but its tpaw.json says that it is theta_1" in message


def test_model_is_not_last(project: Project, refuse: Refuse) -> None:
    message = refuse(anew(project, 1, tpaw_players="saves/play_iter0,saves/sft"))
    assert "`tpaw_players` ends with saves/sft, but its last checkpoint must be theta_1" in message
    assert "`model_name_or_path: saves/play_iter0`" in message


def test_too_few(project: Project, refuse: Refuse) -> None:
    message = refuse(anew(project, 2, tpaw_players="saves/play_iter1"))
    assert "`tpaw_players` lists 1 checkpoint, but iteration 2 with `tpaw_team_size: 3` takes 3" in message
    assert "theta_0 to theta_2, oldest first" in message
    assert "`tpaw_players` is missing, but iteration 1" in refuse(anew(project, 1, tpaw_players=None))


def test_named_twice(project: Project, refuse: Refuse) -> None:
    message = refuse(anew(project, 1, tpaw_players="saves/play_iter0,./saves/play_iter0"))
    assert "names ./saves/play_iter0, saves/play_iter0 more than once" in message


def test_trained_from_another(project: Project, refuse: Refuse, tmp_path: Path) -> None:
    other = tiny.save_model(tmp_path / "other", seed=5)
    message = refuse(anew(project, 1, tpaw_players=f"{other},saves/play_iter0"))
    assert "theta_1 (saves/play_iter0) was trained from a checkpoint with fingerprint" in message
    assert f"but `tpaw_players` has {other} with" in message


def test_another_tokenizer(project: Project, refuse: Refuse) -> None:
    tokenizer = json.loads(Path("saves/sft/tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-5]
    Path("saves/sft/tokenizer.json").write_text(json.dumps(tokenizer))
    message = refuse(anew(project, 1))
    assert "theta_0 (saves/sft) has another tokenizer than theta_1 (saves/play_iter0)" in message
    assert "copy the tokenizer files of the SFT model" in message


@pytest.mark.parametrize(
    ("folder", "key"), [("saves/sft", "theta_0 (`tpaw_players`)"), ("saves/play_iter0", "`model_name_or_path`")]
)
def test_no_tokenizer(project: Project, refuse: Refuse, folder: str, key: str) -> None:
    cut(Path(folder, "tokenizer.json"))
    message = refuse(anew(project, 1))
    assert f"{key}: the tokenizer in {folder} cannot be loaded" in message
    for path in Path(folder).glob("tokenizer*"):
        path.unlink()
    message = refuse(anew(project, 1))
    assert f"{key}: {folder} holds no tokenizer. Copy the tokenizer files" in message


@pytest.mark.parametrize("resize_vocab", [False, True])
def test_another_vocabulary(project: Project, refuse: Refuse, resize_vocab: bool) -> None:
    size = json.loads(Path("saves/sft/config.json").read_text())["vocab_size"]
    change_json(Path("saves/sft/config.json"), vocab_size=size + 8)
    message = refuse(anew(project, 1, resize_vocab=resize_vocab))
    assert f"The players' vocabularies differ (theta_0 {size + 8}, theta_1 {size})" in message
    assert "`resize_vocab` does not help" in message


def test_tokens_beyond_the_vocabulary(project: Project, refuse: Refuse) -> None:
    message = refuse(anew(project, 0, tpaw_players=None, add_tokens="<new>", resize_vocab=True))
    assert "`resize_vocab` would give each player other random rows" in message
    assert "theta_0 only" in message
