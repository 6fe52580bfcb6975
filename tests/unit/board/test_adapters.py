# SPDX-License-Identifier: Apache-2.0
"""Self-play of adapters from the page: what is filled in for LlamaBoard's checkpoints, and what is started with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llamafactory_tpaw.board import play as play_module
from tests.unit.board.page import DrivenPage
from tests.unit.team.checkpoints import save_adapter


BASE = "saves/Tiny/full/sft"


@pytest.fixture
def lora(fresh: DrivenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DrivenPage:
    """The page with an adapter of stage `sft` chosen as LlamaBoard's checkpoint, before a run is named."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(play_module.sys, "executable", str(program))
    save_adapter(Path("saves/Custom/lora/sft"), base_model_name_or_path=BASE)
    fresh.show(top__finetuning_type="lora", top__model_path=BASE, top__checkpoint_path=["sft"])
    fresh.show(tpaw_run="mine", extra_args="{}", tpaw_prompts="tiny_train")
    return fresh


def test_new_run_starts_from_the_checkpoint(lora: DrivenPage) -> None:
    lora.fire("tpaw_run", "input")
    assert lora["tpaw_players"] == [f"{BASE}+saves/Custom/lora/sft"]
    assert (lora["output_dir"], lora["dataset"]) == ("mine_iter0", ["Custom_mine_iter0"])
    assert (lora["top.model_path"], lora["top.checkpoint_path"]) == (BASE, ["sft"])


def test_iterations_train_one_adapter_after_the_other(lora: DrivenPage) -> None:
    lora.fire("tpaw_run", "input")
    lora.show(tpaw_iterations=2)
    *_, last = lora.steps("start_btn")
    assert last["train.output_box"].startswith("Finished."), last
    first, second = (
        yaml.safe_load(Path(f"saves/Custom/lora/mine_iter{iteration}/training_args.yaml").read_text())
        for iteration in range(2)
    )
    players = [f"{BASE}+saves/Custom/lora/sft", f"{BASE}+saves/Custom/lora/mine_iter0"]
    assert (first["adapter_name_or_path"], first["tpaw_players"]) == ("saves/Custom/lora/sft", players[0])
    assert second["adapter_name_or_path"] == "saves/Custom/lora/mine_iter0"
    assert second["tpaw_players"] == ",".join(players)
    assert first["model_name_or_path"] == second["model_name_or_path"] == BASE

    lora.show(tpaw_iteration=1)
    lora.fire("tpaw_iteration", "input")
    assert lora["top.checkpoint_path"] == ["mine_iter0"]
    assert (lora["tpaw_players"], lora["output_dir"]) == (players, "mine_iter1")
    assert "adapter_name_or_path" not in lora["extra_args"]


def test_whole_model_as_checkpoint(lora: DrivenPage) -> None:
    lora.show(top__finetuning_type="full", top__model_name="Tiny", top__checkpoint_path="sft")
    lora.show(top__model_path="org/base")
    lora.fire("tpaw_run", "input")
    assert lora["tpaw_players"] == [BASE]
    assert lora["top.model_path"] == "org/base"


def test_loaded_configuration_keeps_its_checkpoints(lora: DrivenPage) -> None:
    lora.fire("tpaw_run", "input")
    lora.show(config_path="mine.yaml")
    lora.fire("arg_save_btn", "click")
    lora.values = dict(lora.initial)
    lora.show(top__lang="en", config_path="mine.yaml")
    lora.fire("arg_load_btn", "click")
    # As the browser does behind a change of the model's name or the finetuning method.
    listing = [each for each in lora.blocks.fns.values() if getattr(each.fn, "__name__", "") == "list_checkpoints"]
    assert len(listing) > 1
    for function in listing:
        lora.apply(function)
        assert lora["top.checkpoint_path"] == ["sft"]
        assert lora.properties["top.checkpoint_path", "choices"] == [("sft", "sft")]
        assert lora.properties["top.checkpoint_path", "multiselect"] is True
    lora.show(top__finetuning_type="full")
    lora.apply(listing[0])
    assert lora["top.checkpoint_path"] is None
