# SPDX-License-Identifier: Apache-2.0
"""From the page to run files; Start, Abort and Preview, with commands in the place of `llamafactory-tpaw run`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from llamafactory_tpaw.board import runner, settings
from tests.processes import ends_soon
from tests.unit.board.conftest import save_iteration
from tests.unit.board.page import DrivenPage


# It ends by SIGTERM as our commands do, after what it does then.
WAITS = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
def end(*_):
    child.terminate()
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("D_0:  40%|####      | 4/10 [00:01<00:02]", flush=True)
time.sleep(600)
"""
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "REFRESH_S", 0.05)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, page: DrivenPage) -> Iterator[Any]:
    """Set what Start runs instead; it is killed after the test."""

    def use(script: str) -> None:
        monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", script))

    yield use
    play = page.engine.runner.trainer
    if isinstance(play, runner.Play) and play.running:
        play._process.kill()
        play.wait(10)


def until(steps: Iterator[DrivenPage], text: str) -> DrivenPage:
    """Look at the page until its output box has a text."""
    end = time.monotonic() + 30
    for page in steps:
        if text in f"{page['output_box']}{page.labels.get(page.element('progress_bar'))}":
            return page
        assert time.monotonic() < end, page["output_box"]
    raise AssertionError(f"it ended before {text!r}: {page['output_box']}")


def test_start_writes_and_plays_what_the_page_shows(page: DrivenPage, command: Any) -> None:
    command("import sys; print('played', *sys.argv[1:])")
    page.show(tpaw_iterations=2, tpaw_eta=3)
    files = [f"saves/Custom/full/play_iter{number}/training_args.yaml" for number in range(2)]
    told = page.fire("start_btn")
    assert told.startswith("Finished.")
    assert f"played {' '.join(files)}" in told
    assert [yaml.safe_load(Path(file).read_text())["tpaw_eta"] for file in files] == [3, 3]
    shown = yaml.safe_load(Path(files[1]).with_name("llamaboard_config.yaml").read_text())
    assert (shown["train.tpaw_iteration"], shown["train.tpaw_eta"]) == (1, 3)
    assert "Custom_play_iter1" in json.loads(Path("data/dataset_info.json").read_text())
    assert (page.engine.runner.running, page.engine.runner.trainer) == (False, None)


def test_what_it_does_is_shown_until_it_ends(page: DrivenPage, command: Any) -> None:
    command(WAITS)
    steps = page.steps("start_btn")
    shown = until(steps, "Iteration 0: D_0 · 4/10")
    assert shown["progress_bar"] == 40
    child = int(shown["output_box"].partition("child ")[2].split()[0])
    assert "A process is in running" in page.engine.runner._initialize(page.values, True, True)
    # Another page, that is loaded now.
    assert "D_0" in next(page.steps("resume_btn", "change"))["output_box"]
    page.fire("stop_btn")
    told = until(steps, "Aborted.")["output_box"]
    assert "saved" in told
    assert ends_soon(child), "a process of it is left"
    assert page.engine.runner.running is False


def test_abort_again_kills(page: DrivenPage, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command(STUBBORN)
    steps = page.steps("start_btn")
    until(steps, "ready")
    page.fire("stop_btn")
    until(steps, "Aborting")
    page.fire("stop_btn")
    until(steps, "Aborting")  # the second press came too soon to count
    monkeypatch.setattr(runner, "AGAIN_S", 0.0)
    page.fire("stop_btn")
    until(steps, "Aborted.")


def test_failure_is_told_with_its_reason(page: DrivenPage, command: Any) -> None:
    command("import sys; sys.exit('llamafactory-tpaw: error: <b>`template` is missing</b>')")
    told = page.fire("start_btn")
    assert told.startswith("Failed with exit code 1.")
    assert "```\nllamafactory-tpaw: error: <b>`template` is missing</b>" in told
    assert page.warnings[-1] == "Failed with exit code 1."


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ({"tpaw_prompts": ""}, "`tpaw_prompts` is empty"),
        ({"tpaw_eta": 0.5, "tpaw_team_size": 0}, "`tpaw_eta` is 0.5"),
        ({"tpaw_eta": 0.5, "tpaw_team_size": 0}, "`tpaw_team_size` is 0"),
        ({"tpaw_max_prompts": "many"}, "`tpaw_max_prompts` is &#x27;many"),
        ({"tpaw_temperature": None}, "`temperature` must be given"),
        ({"tpaw_iteration": None, "tpaw_iterations": 0}, "The first iteration is None and 0 are to be played"),
        ({"tpaw_engine": "openai"}, "tpaw_engine_url"),
        ({"packing": True}, "`packing: True` does not go with stage `tpaw`"),
        ({"extra_args": '{"stage": "sft"}'}, "`extra_args` has `stage`"),
        ({"use_swanlab": True, "swanlab_api_key": "s3cret"}, "`swanlab_api_key` is not written to a file"),
        ({"learning_rate": "<b>fast"}, "could not convert string to float: &#x27;&lt;b&gt;fast"),
        ({"extra_args": "[1]"}, "cannot be read"),
        ({"output_dir": ""}, "output dir"),
        ({"top__model_path": ""}, "Model not found."),
    ],
)
@pytest.mark.parametrize("button", ["start_btn", "cmd_preview_btn", "arg_save_btn"])
def test_wrong_fields_start_and_write_nothing(
    page: DrivenPage, button: str, shown: dict[str, Any], message: str
) -> None:
    page.show(**shown)
    with mock.patch.object(runner, "Play") as play:
        told = page.fire(button)
    assert message in told
    assert "s3cret" not in told
    assert play.call_count == 0
    assert message in page.warnings[-1]
    assert sorted(path.name for path in Path().iterdir()) == ["data"]


def test_settings_are_previewed_saved_and_loaded_as_llamaboards_own(page: DrivenPage) -> None:
    page.show(tpaw_gamma=0.25, tpaw_engine="vllm", config_path="mine.yaml", tpaw_iteration=1)
    told = page.fire("cmd_preview_btn")
    for word in ("llamafactory-cli train", "--stage tpaw", "--tpaw_iteration 1", "--tpaw_gamma 0.25", "--top_k 0"):
        assert word in told
    assert not Path("saves").exists()
    page.fire("arg_save_btn")
    page.show(tpaw_gamma=0.5, tpaw_engine="hf")
    page.fire("arg_load_btn")
    assert (page["tpaw_gamma"], page["tpaw_engine"], page["training_stage"]) == (0.25, "vllm", "TPAW")


def test_choosing_an_output_folder_fills_in_the_iteration_that_comes_next(page: DrivenPage, command: Any) -> None:
    command("print('played')")
    page.show(tpaw_gamma=0.25)
    page.fire("start_btn")
    page.show(tpaw_gamma=0.5, top__template="default", output_dir="play_iter0")
    page.fire("output_dir", "input")
    assert (page["tpaw_gamma"], page["top.template"], page["tpaw_iteration"]) == (0.25, "qwen", 0)
    folder = save_iteration(0)
    page.fire("output_dir", "input")
    assert page["tpaw_iteration"] == 1
    (folder / "tpaw.json").write_text("{")
    assert settings.next_iteration(folder) == 0


def test_other_stages_are_as_without_this_package(page: DrivenPage) -> None:
    page.show(training_stage="Supervised Fine-Tuning", dataset=["sums"], tpaw_prompts=None, tpaw_iteration=-1)
    told = page.fire("cmd_preview_btn")
    assert "--stage sft" in told
    assert "--trust_remote_code True" in told
    assert "tpaw_" not in told
    with mock.patch("llamafactory.webui.runner.Popen", side_effect=InterruptedError) as popen:
        with pytest.raises(InterruptedError):
            page.fire("start_btn")
    assert popen.call_args.args[0] == ["llamafactory-cli", "train", "saves/Custom/full/play/training_args.yaml"]
    written = yaml.safe_load(Path("saves/Custom/full/play/training_args.yaml").read_text())
    assert [key for key in written if key.startswith("tpaw")] == []
    with mock.patch("llamafactory.webui.runner.abort_process") as abort:
        page.engine.runner.trainer = mock.Mock(pid=1)
        page.fire("stop_btn")
    abort.assert_called_once_with(1)


SAVES = "saves/Custom/full"


def played(page: DrivenPage, **shown: Any) -> list[dict[str, Any]]:
    page.show(**shown)
    parse = type(page.engine.runner)._parse_train_args.__wrapped__
    return runner.settings_of(parse, page.engine.runner, page.values)


def test_first_iteration_of_a_new_run(page: DrivenPage) -> None:
    (found,) = played(page, learning_rate="1e-3", tpaw_max_prompts="50", cutoff_len=512)
    expected = {"stage": "tpaw", "do_train": True, "model_name_or_path": "models/sft", "finetuning_type": "full"}
    expected |= {"template": "qwen", "learning_rate": 1e-3, "cutoff_len": 512, "optim": "adamw_torch"}
    expected |= {"dataset": "Custom_play_iter0", "output_dir": f"{SAVES}/play_iter0", "tpaw_iteration": 0}
    expected |= {"tpaw_objective": "tpaw", "tpaw_eta": 6.0, "tpaw_prompts": "sums", "tpaw_max_prompts": "50"}
    expected |= {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert {key: found.get(key) for key in expected} == expected
    absent = ("trust_remote_code", "max_samples", "preprocessing_num_workers", "tpaw_scale", "tpaw_engine_url")
    assert [key for key in absent if key in found] == []


@pytest.mark.parametrize("output_dir", ["play", "play_iter0", "play_iter7"])
def test_iterations_follow_from_the_first_model_and_the_run(page: DrivenPage, output_dir: str) -> None:
    given = {"tpaw_iteration": 1, "tpaw_iterations": 2, "tpaw_team_size": 2, "dataset": ["pairs"]}
    second, third = played(page, output_dir=output_dir, **given)
    players = ["models/sft", f"{SAVES}/play_iter0", f"{SAVES}/play_iter1"]
    changed = {
        "model_name_or_path": (players[1], players[2]),
        "tpaw_players": (",".join(players[:2]), ",".join(players)),
        "dataset": ("pairs,Custom_play_iter0,Custom_play_iter1", "pairs,Custom_play_iter1,Custom_play_iter2"),
        "output_dir": (f"{SAVES}/play_iter1", f"{SAVES}/play_iter2"),
        "tpaw_iteration": (1, 2),
    }
    assert {key: (second[key], third[key]) for key in second if second[key] != third[key]} == changed


def test_checkpoints_and_adapters_are_llamaboards(page: DrivenPage) -> None:
    (full,) = played(page, top__checkpoint_path="sft")
    assert full["model_name_or_path"] == f"{SAVES}/sft"
    lora = played(page, top__finetuning_type="lora", top__checkpoint_path=["sft"], tpaw_iteration=1, lora_rank=4)[0]
    assert (lora["model_name_or_path"], lora["lora_rank"]) == ("models/sft", 4)
    assert lora["adapter_name_or_path"] == "saves/Custom/lora/play_iter0"
    assert lora["tpaw_players"] == "models/sft+saves/Custom/lora/sft,models/sft+saves/Custom/lora/play_iter0"


def test_tspin_has_its_own_keys_and_extra_arguments_go_before_the_fields(page: DrivenPage) -> None:
    (found,) = played(page, tpaw_objective="tspin", tpaw_iteration=1)
    assert (found["tpaw_scale"], found["tpaw_history_weight"]) == (1.0, 0.1)
    assert found["tpaw_proto"] == "Custom_play_iter0"
    assert not {"tpaw_eta", "tpaw_gamma", "tpaw_team_size"} & set(found)
    (found,) = played(page, tpaw_objective="iris")
    assert (found["tpaw_reward_scale"], found["tpaw_renyi_alpha"]) == (0.1, 0.5)
    assert not {"tpaw_eta", "tpaw_scale", "tpaw_team_size"} & set(found)
    extra = {"tpaw_scale": 2, "tpaw_turn": "first", "trust_remote_code": True, "max_samples": 100000, "dataset": "D"}
    (found,) = played(page, tpaw_iteration=0, extra_args=json.dumps(extra))
    assert {key: found[key] for key in extra} == extra


def test_seed_is_that_of_the_page(page: DrivenPage) -> None:
    """LlamaBoard has a field for it since 0.9.6."""
    args = type(page.engine.runner)._parse_train_args.__wrapped__(page.engine.runner, page.values)
    ids = {page.manager.get_id_by_elem(element): value for element, value in page.values.items()}
    ids |= {"train.train_seed": "7", "train.tpaw_iterations": 2}
    assert [each["seed"] for each in settings.run_settings(args, ids)] == [7, 7]
    (found, _) = settings.run_settings(args, ids | {"train.extra_args": '{"seed": 3}'})
    assert found["seed"] == 3
    with pytest.raises(ValueError, match="1e3"):
        settings.run_settings(args, ids | {"train.train_seed": "1e3"})
