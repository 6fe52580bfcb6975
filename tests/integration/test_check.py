# SPDX-License-Identifier: Apache-2.0
"""`check` against what a run then really needs, and against broken runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.errors import EnvironmentProblem
from llamafactory_tpaw.runs.check import check
from llamafactory_tpaw.runs.checks import check_start
from llamafactory_tpaw.runs.plan import make_plan
from tests import runs, tiny


pytestmark = pytest.mark.integration
STEPS = ["generation", "scoring", "training"]


@pytest.fixture
def project(
    played: tuple[runs.Project, list[runs.Result]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> runs.Project:
    """The played run before its iteration 2."""
    shutil.copytree(played[0].root, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "saves" / "play_iter2")
    for path in (tmp_path / "run" / "data" / "tpaw").glob("play_iter2*"):
        path.unlink()
    monkeypatch.chdir(tmp_path / "run")
    return runs.Project(tmp_path / "run", played[0].model)


def messages(result: Any) -> list[str]:
    return [f"{level}: {message}" for level, _, message in result.lines]


def test_a_sound_run_has_estimates_with_how(
    project: runs.Project, played: tuple[runs.Project, list[runs.Result]]
) -> None:
    result = check(project.settings(2, num_train_epochs=2.0))
    assert messages(result) == []
    plain = json.loads(json.dumps(result.as_dict()))
    assert list(plain) == ["schema", "exit_code", "findings", "device", "memory", "disk", "time", "step_zero"]
    assert (plain["exit_code"], plain["step_zero"]) == (0, None)
    assert list(plain["memory"]) == STEPS
    figures = [*plain["disk"], *plain["time"], *(figure for part in plain["memory"].values() for figure in part)]
    assert all(figure["amount"] > 0 and figure["how"] and figure["unit"] in ("bytes", "seconds") for figure in figures)
    # By the iteration before, which trained on two rounds.
    before = json.loads(Path("saves/play_iter1/tpaw.json").read_text())["seconds"]
    seconds = {figure["name"]: figure["amount"] for figure in plain["time"]}
    assert seconds["generate"] == pytest.approx(before["generate"], abs=1e-3)
    assert seconds["train"] == pytest.approx(before["train"] * 3 / 2, rel=0.01)
    assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"], abs=1e-3)
    real = played[0].root
    disk = {figure["name"]: figure["amount"] for figure in plain["disk"]}
    written = sum(path.stat().st_size for path in (real / "saves/play_iter2").rglob("*") if path.is_file())
    assert disk["theta_{t+1}"] == pytest.approx(written, rel=0.3)
    # By four bytes a token; of this tokenizer most tokens are one.
    assert disk["triplets"] == pytest.approx((real / "data/tpaw/play_iter2.jsonl").stat().st_size, rel=1.0)
    # Each prompt's target and three responses by theta_2, its new response by theta_0 and theta_1.
    assert disk["cache"] == 16 * 6 * 40


def test_the_first_iteration_has_no_hours(project: runs.Project) -> None:
    time = check(project.settings(0, output_dir="saves/other_iter0")).time
    assert [(figure.name, figure.readable()) for figure in time] == [("total", "unknown")]
    assert "`check --model` measures" in time[0].how


def test_memory_is_near_what_one_batch_takes(tmp_path: Path) -> None:
    """In a process of its own, which holds nothing of other tests."""
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
    project = runs.Project(tmp_path, tiny.save_model(tmp_path / "theta_0", **sizes))
    changes = {"per_device_train_batch_size": 8, "max_new_tokens": 64, "tpaw_score_batch_tokens": 2048}
    name = project.write("run.yaml", project.settings(0, **changes))
    result = project.command("llamafactory-tpaw", "check", name, "--model", "--json")
    found = json.loads(result.output[result.output.index("\n{\n") :])
    assert found["step_zero"]["reward"] == pytest.approx(0.0, abs=1e-5)
    assert list(found["memory"]) == STEPS
    for figures in found["memory"].values():
        amounts = {figure["name"]: figure["amount"] for figure in figures}
        assert amounts["peak"] == pytest.approx(amounts["measured"], rel=0.3)
    assert amounts["measured"] > amounts["process"] + 16 * 10e6


def test_every_problem_at_once(project: runs.Project) -> None:
    info = json.loads(Path("data/dataset_info.json").read_text())
    settings = project.settings(2, template="llama3", per_device_train_batch_size=4)
    assert info["additions"]
    rows = Path("data/additions.jsonl").read_text().splitlines()
    Path("data/additions.jsonl").write_text("\n".join([*rows[:2], '{"question": "?", "answer": ""}', *rows[3:]]))
    result = check(settings)
    assert result.findings.exit_code == 3
    texts = "\n".join(messages(result))
    assert "play_iter0.jsonl was generated with another tokenizer than this run's" in texts
    assert "1 bad among the first 16 rows of additions, and `tpaw_max_bad_rows` allows 0" in texts
    assert "the first is data/additions.jsonl, row 3: its response is empty." in texts
    assert all((result.memory, result.disk, result.time))


@pytest.mark.parametrize(
    ("given", "what"), [({"stage": "dpo"}, "`stage: dpo` is not `tpaw`"), ({}, "`stage` is missing")]
)
def test_a_run_file_of_another_stage(given: dict[str, Any], what: str) -> None:
    result = check(given)
    advice = "but `llamafactory-tpaw check` is for an iteration of self-play. Give the run file of one."
    assert messages(result) == [f"error: {what}, {advice}"]
    assert result.findings.exit_code == 2


def test_settings_come_first(project: runs.Project) -> None:
    result = check(project.settings(2, tpaw_eta=0, tpaw_gama=1, temperature=None))
    assert result.findings.exit_code == 2
    assert len(result.findings.problems) == 3
    started = check(project.settings(2, do_train=False, deepspeed=None))
    assert messages(started)[0].startswith("error: Neither `do_train` nor `do_eval` is true")
    assert result.as_dict()["memory"] == {}


def test_what_does_not_fit(project: runs.Project, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    settings = project.settings(2)
    result = check(settings)
    assert result.findings.exit_code == 5
    (problem,) = messages(result)
    assert problem.startswith("error: The iteration writes theta_{t+1} ")
    assert "97.7 KiB free. Free some, save fewer checkpoints (`save_total_limit`" in problem
    with pytest.raises(EnvironmentProblem, match=r"has 97\.7 KiB free"):
        check_start(make_plan(settings))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=int(sum(f.amount for f in result.disk)))
    )
    assert [level for level, *_ in check(settings).lines] == ["warning"]
    check_start(make_plan(settings))


def test_device_that_is_too_small(project: runs.Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_tpaw.runs import check as module
    from llamafactory_tpaw.runs.check import Device

    monkeypatch.setattr(module, "_device_of", lambda run: Device("a watch", 400_000))
    result = check(project.settings(2))
    assert result.findings.exit_code == 5
    assert any("weights and optimizer, which no smaller batch makes less" in text for text in messages(result))
    peak = max(figures[-1].amount for figures in result.memory.values())
    monkeypatch.setattr(module, "_device_of", lambda run: Device("a phone", round(peak)))
    result = check(project.settings(2))
    assert (result.findings.exit_code, {level for level, *_ in result.lines}) == (0, {"warning"})


def test_model_shows_a_reward_of_zero(project: runs.Project) -> None:
    result = check(project.settings(2), with_model=True)
    assert result.findings.errors == []
    assert result.measured.reward == pytest.approx(0.0, abs=1e-5)
    assert sorted(result.measured.fingerprints) == ["theta_0", "theta_1", "theta_2"]
    assert [figure.name for figure in result.time] == ["generate", "score", "train", "total"]
    assert all(figure.amount > 0 for figure in result.time)
    assert sorted(Path("saves").glob("**/checkpoint-*")) == [] == sorted(Path("saves").glob("play_iter2*"))


def test_model_finds_a_hidden_change(project: runs.Project) -> None:
    settings = project.settings(2)
    check(settings)
    path = Path("saves/play_iter1/model.safetensors")
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    with path.open("r+b") as stream:
        stream.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert check(settings).findings.exit_code == 0
    result = check(settings, with_model=True)
    assert result.findings.exit_code in (2, 3)
    assert "theta_2" in messages(result)[0]
