# SPDX-License-Identifier: Apache-2.0
"""The fields of the stage: saved and loaded, greyed out where they do nothing, refused with a message when wrong."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.board.browsing import Board
from tests.board.playing import choose_run
from tests.board.server import Server
from tests.runs import Project


pytestmark = pytest.mark.integration
# None of them the default, nor what the run file says.
OTHER: dict[str, Any] = {
    "tpaw_iterations": "2",
    "tpaw_objective": "tspin",
    "tpaw_team_size": "2",
    "tpaw_reward_scale": "0.7",
    "tpaw_eta": "3.5",
    "tpaw_gamma": "0.25",
    "tpaw_scale": "0.2",
    "tpaw_history_weight": "0.9",
    "tpaw_max_prompts": "12",
    "tpaw_engine": "openai",
    "tpaw_engine_url": "http://127.0.0.1:9/v1",
    "tpaw_temperature": "0.8",
    "tpaw_top_p": "0.95",
    "tpaw_top_k": "7",
    "tpaw_max_new_tokens": "33",
    "tpaw_samples_per_prompt": "3",
    "tpaw_reference": "online",
    "tpaw_grouping": "none",
    "tpaw_cache_dir": "saves/cache",
    "tpaw_trust_remote_code": True,
}
# These can be filled in only in this order: a choice makes others of them fields that do nothing.
LAST = ("tpaw_engine", "tpaw_reference", "tpaw_objective")
# Field -> what is typed, and what the message says.
WRONG: dict[str, tuple[str, str]] = {
    "tpaw_iteration": ("-1", "tpaw_iteration is -1"),
    "tpaw_reward_scale": ("0", "tpaw_reward_scale is 0"),
    "tpaw_eta": ("0.5", "tpaw_eta is 0.5"),
    "tpaw_gamma": ("much", "tpaw_gamma is 'much'"),
    "tpaw_max_prompts": ("0", "tpaw_max_prompts is 0"),
    "tpaw_prompts": ("nowhere", "tpaw_prompts: nowhere"),
    "tpaw_players": ("saves/none", "saves/none"),
    "tpaw_cache_dir": ("data/additions.jsonl", "tpaw_cache_dir: data/additions.jsonl"),
    "tpaw_team_size": ("0", "tpaw_team_size is 0"),
    "tpaw_temperature": ("-1", "temperature is -1"),
    "tpaw_top_p": ("0", "top_p is 0"),
    "tpaw_top_k": ("-1", "top_k is -1"),
    "tpaw_max_new_tokens": ("0", "max_new_tokens is 0"),
    "tpaw_samples_per_prompt": ("0", "tpaw_samples_per_prompt is 0"),
    "tpaw_iterations": ("0", "iterations to play is 0"),
    "Output dir": ("../../../outside", "outside"),
    "Learning rate": ("fast", "learning_rate is 'fast'"),
    "Model path": ("nowhere/model", "nowhere/model"),
    "Dataset": ("../refused", "../refused"),
}


def in_order(values: dict[str, Any]) -> list[str]:
    return sorted(values, key=lambda name: LAST.index(name) if name in LAST else -1)


def test_saved_configuration_comes_back(board: Board, project: Project) -> None:
    choose_run(board, project, "play")
    board.fill("tpaw_engine", "openai")  # opens the field of the URL
    for name in in_order(OTHER):
        if board.is_usable(name):
            board.fill(name, OTHER[name])
    board.fill("tpaw_objective", "tspin")
    for name in ("tpaw_scale", "tpaw_history_weight"):
        board.fill(name, OTHER[name])
    shown = {name: board.value(name) for name in (*OTHER, "tpaw_run", "tpaw_prompts", "tpaw_iteration")}
    assert {name: shown[name] for name in OTHER} == OTHER

    board.fill("Config path", "kept.yaml")
    board.press("Save arguments")
    board.wait_for("Arguments have been saved at")
    board.open()
    board.fill("Config path", "kept.yaml")
    board.press("Load arguments")
    board.wait_for("Arguments have been restored.")
    back = {name: board.value(name) for name in shown}
    assert back == shown
    board.field("tpaw_players").get_by_text(f"θ_0 · {project.model}").wait_for()
    assert board.value("Stage") == "TPAW"


def test_demo_is_filled_in_and_previewed(board: Board, project: Project) -> None:
    files = [
        yaml.safe_load((project.root / f"yaml/tiny_tpaw_iter{iteration}.yaml").read_text()) for iteration in range(3)
    ]
    choose_run(board, project, "Tiny/tpaw")
    for iteration in (2, 1, 0):
        board.fill("tpaw_iteration", iteration)
        board.wait_for(f"Iteration {iteration} of tpaw filled in")
        given = files[iteration]
        assert board.value("Model path") == given["model_name_or_path"]
        assert board.value("Dataset") == given["dataset"].split(",")
        assert board.value("Output dir") == given["output_dir"]
        names = [Path(player).name for player in given["tpaw_players"].split(",")]
        assert [player.split(" · ")[0] for player in board.value("tpaw_players")] == [
            f"θ_{k}" for k in range(len(names))
        ]
    board.picture("demo-filled-in")

    board.fill("tpaw_iterations", 3)
    board.press("Preview command")
    board.wait_for("--output_dir saves/Tiny/full/tpaw_iter2")
    board.picture("demo-preview")
    text = board.page.locator("code:visible").inner_text().replace("\\\n", " ")
    commands = [shlex.split(line)[2:] for line in text.splitlines() if line.strip()]
    said = [dict(zip(words[::2], words[1::2], strict=True)) for words in commands]
    # What is a default of LlamaFactory may be said or not.
    for words, given in zip(said, files, strict=True):
        keys = {f"--{key}": value for key, value in given.items()}
        differing = {key: (words[key], keys[key]) for key in keys.keys() & words if not same(words[key], keys[key])}
        assert differing == {}
        assert keys.keys() - words.keys() <= {"--default_system", "--weight_decay", "--tpaw_turn"}


def same(word: str, value: Any) -> bool:
    return word == str(value) or yaml.safe_load(word) == value


def test_fields_that_do_nothing_are_greyed_out(board: Board, project: Project) -> None:
    choose_run(board, project, "play")
    of_team, of_tspin = ("tpaw_team_size", "tpaw_eta", "tpaw_gamma"), ("tpaw_scale", "tpaw_history_weight")
    for objective, used, unused in (("tspin", of_tspin, of_team), ("tpaw", of_team, of_tspin)):
        board.fill("tpaw_objective", objective)
        for name in unused:
            board.until_usable(name, False)
            assert board.opacity(name) < 0.6, "it looks as if it could be changed"
        for name in used:
            board.until_usable(name, True)
            assert board.opacity(name) == 1
    board.until_usable("tpaw_engine_url", False)
    board.fill("tpaw_engine", "openai")
    board.until_usable("tpaw_engine_url", True)


def test_wrong_input_is_refused_in_the_page(board: Board, server: Server, project: Project) -> None:
    choose_run(board, project, "refused")
    before = sorted((project.root / "saves").rglob("*"))
    for name, (wrong, said) in WRONG.items():
        right = board.value(name)
        board.fill(name, wrong)
        board.press("Start")
        board.message(said)
        if name == "tpaw_eta":
            board.picture("wrong-input")
        board.dismiss()
        board.fill(name, right)
        if name == "tpaw_iteration":
            board.wait_for("of refused filled in")
    assert not server.descendants()
    assert sorted((project.root / "saves").rglob("*")) == before
