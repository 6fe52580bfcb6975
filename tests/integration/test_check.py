# SPDX-License-Identifier: Apache-2.0
"""`check` against what a run then really needs, and against broken runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from llamafactory_tpaw.data.collator import TripletDataset
from llamafactory_tpaw.errors import EnvironmentProblem
from llamafactory_tpaw.lf import facade
from llamafactory_tpaw.runs.check import check, check_start
from llamafactory_tpaw.runs.estimates.hours import measure_speed
from llamafactory_tpaw.runs.estimates.passes import collator_of
from llamafactory_tpaw.runs.estimates.workload import describe_workload, take_sample, worst_batch
from llamafactory_tpaw.runs.plan import make_plan
from llamafactory_tpaw.team.forward import disable_dropout, response_logps
from llamafactory_tpaw.team.members import load_encoder
from llamafactory_tpaw.team.shortcuts import find_shortcuts
from tests import encoders, runs


pytestmark = pytest.mark.integration
REAL = {"num_train_epochs": 2.0, "plot_loss": True}


@pytest.fixture
def project(
    played: tuple[runs.Project, list[runs.Result]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> runs.Project:
    """The played run before its iteration 2."""
    shutil.copytree(played[0].root, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "saves" / "play_iter2")
    for path in (tmp_path / "run" / "data" / "tpaw").glob("play_iter2*"):
        path.unlink()
    earlier = {path.relative_to(played[0].root) for path in _of_earlier_iterations(played[0])}
    for path in (tmp_path / "run" / "saves" / ".tpaw_cache").rglob("part-*"):
        if path.relative_to(tmp_path / "run") not in earlier:
            path.unlink()
    monkeypatch.chdir(tmp_path / "run")
    return runs.Project(tmp_path / "run", played[0].model)


def messages(result: Any) -> list[str]:
    return [f"{finding.level}: {finding.message}" for finding in result.report.findings]


def size(*paths: Path) -> int:
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files)


def test_a_sound_run_has_estimates_with_how(project: runs.Project) -> None:
    result = check(project.settings(2, **REAL))
    assert messages(result) == []
    plain = json.loads(json.dumps(result.as_dict()))
    assert list(plain) == ["schema", "exit_code", "findings", "device", "memory", "disk", "time", "step_zero"]
    assert (plain["exit_code"], plain["step_zero"]) == (0, None)
    assert list(plain["memory"]) == ["generation", "scoring", "training"]
    figures = [*plain["disk"], *plain["time"], *(figure for part in plain["memory"].values() for figure in part)]
    assert all(figure["amount"] > 0 and figure["how"] and figure["unit"] in ("bytes", "seconds") for figure in figures)
    parts = ["generation", "scoring", "training", "saving", "reading", "start"]
    assert [figure["name"] for figure in plain["time"]] == [*parts, "total"]
    assert plain["time"][-1]["amount"] == pytest.approx(
        sum(figure["amount"] for figure in plain["time"][:-1]), abs=0.01
    )


def test_what_is_cached_is_not_scored_again(
    project: runs.Project, played: tuple[runs.Project, list[runs.Result]]
) -> None:
    """The cache is looked at by content: theta_0 and theta_1 scored the targets and the two rounds before."""
    settings = project.settings(2, **REAL)
    before = scored(check(settings))
    assert before == 6 * 16
    cache = Path("saves/.tpaw_cache")
    shutil.copytree(played[0].root / cache, cache, dirs_exist_ok=True)
    # What iteration 2 scored, too, but for the responses that are yet to be sampled.
    assert scored(check(settings)) == 3 * 16
    for name in ("play_iter2.jsonl", "play_iter2.meta.json"):
        shutil.copy(played[0].root / "data" / "tpaw" / name, Path("data/tpaw") / name)
    finished = check(settings)
    assert scored(finished) == 0
    assert next(figure.amount for figure in finished.time if figure.name == "scoring") == 0
    # The folder is there, but of other numbers.
    assert scored(check(settings | {"flash_attn": "disabled"})) == 12 * 16


def scored(result: Any) -> int:
    """Log-probs that the estimate of the cache speaks of."""
    how = next(figure.how for figure in result.disk if figure.name == "cache")
    return int(how.split("each of ")[1].split()[0])


def test_disk_is_what_the_iteration_wrote(
    project: runs.Project, played: tuple[runs.Project, list[runs.Result]]
) -> None:
    result = check(project.settings(2, **REAL))
    real = played[0].root
    cache = size(real / "saves" / ".tpaw_cache") - size(*_of_earlier_iterations(played[0]))
    written = {
        "theta_{t+1}": size(real / "saves" / "play_iter2"),
        "triplets": size(*(real / "data" / "tpaw").glob("play_iter2*")),
    }
    passing = ("half-done triplets", "token ids")
    estimated = {figure.name: figure.amount for figure in result.disk if figure.name not in passing}
    assert sum(estimated.values()) == pytest.approx(sum(written.values()) + cache, rel=0.05)
    for name, amount in written.items():
        assert estimated[name] == pytest.approx(amount, rel=0.1)


def _of_earlier_iterations(project: runs.Project) -> list[Path]:
    """Parts of the cache that were written before iteration 2 generated its triplets."""
    begun = (project.root / "data" / "tpaw" / "play_iter2.meta.json").stat().st_mtime
    files = (path for path in (project.root / "saves" / ".tpaw_cache").rglob("*") if path.is_file())
    return [path for path in files if path.stat().st_mtime < begun]


@pytest.mark.parametrize("changes", [{}, {"flash_attn": "disabled"}, {"disable_gradient_checkpointing": True}])
def test_memory_is_what_a_real_step_allocates(project: runs.Project, changes: dict[str, Any]) -> None:
    settings = project.settings(2, max_new_tokens=128, **changes)
    result = check(settings)
    figures = {figure.name: figure.amount for figure in result.memory["training"]}
    run = encoders.parse(project, 2, max_new_tokens=128, **changes)
    tokenizer, _, encoder = load_encoder(run)
    plan = make_plan(settings)
    workload = describe_workload(
        plan, encoder, take_sample(plan, encoder, run.model, run.data, run.training, 64), run.data
    )
    triplets = worst_batch(workload, plan, run.training.per_device_train_batch_size, run.data.cutoff_len)
    model = facade.load_model(tokenizer, run.model, run.finetuning, True)
    disable_dropout(model)
    shortcuts = find_shortcuts(model, run.training, run.finetuning)
    batch = collator_of(run, tokenizer, shortcuts)([TripletDataset(triplets)[index] for index in range(4)])
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    kept, allocated = _saved_and_allocated(model, lambda: response_logps(model, batch, head=shortcuts.head).sums.sum())
    gradients = sum(weight.grad.numel() * weight.grad.element_size() for weight in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    state = sum(
        value.numel() * value.element_size() for states in optimizer.state.values() for value in states.values()
    )
    assert figures["weights"] == pytest.approx(weights, rel=0.2)
    assert figures["gradients"] == pytest.approx(gradients, rel=0.2)
    assert figures["optimizer"] == pytest.approx(state, rel=0.2)
    # What the allocator gave out holds, in so small a model, hardly anything of the gradients at its peak.
    assert figures["activations"] == pytest.approx(allocated, rel=0.2)
    assert kept < figures["activations"]


def _saved_and_allocated(model: torch.nn.Module, forward: Any) -> tuple[int, int]:
    """Bytes that autograd saves, and most bytes that the allocator gave out beyond what was there."""
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    kept = sum(saved.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        forward().backward()
    events = [event for event in prof.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return kept, most


def test_every_problem_at_once(project: runs.Project) -> None:
    info = json.loads(Path("data/dataset_info.json").read_text())
    settings = project.settings(2, template="llama3", per_device_train_batch_size=4)
    assert info["additions"]
    rows = Path("data/additions.jsonl").read_text().splitlines()
    Path("data/additions.jsonl").write_text("\n".join([*rows[:2], '{"question": "?", "answer": ""}', *rows[3:]]))
    result = check(settings)
    assert result.report.exit_code == 3
    texts = "\n".join(messages(result))
    assert "play_iter0.jsonl was generated with another tokenizer than this run's" in texts
    assert "1 bad among the first 16 rows of additions, and `tpaw_max_bad_rows` allows 0" in texts
    assert "First: data/additions.jsonl, row 3, because its response is empty." in texts
    assert all((result.memory, result.disk, result.time))


@pytest.mark.parametrize(
    ("given", "what"), [({"stage": "dpo"}, "`stage: dpo` is not `tpaw`"), ({}, "`stage` is missing")]
)
def test_a_run_file_of_another_stage(given: dict[str, Any], what: str) -> None:
    result = check(given)
    advice = "but `llamafactory-tpaw check` is for an iteration of self-play. Give the run file of one."
    assert messages(result) == [f"error: {what}, {advice}"]
    assert result.report.exit_code == 2


def test_settings_come_first(project: runs.Project) -> None:
    result = check(project.settings(2, tpaw_eta=0, tpaw_gama=1, temperature=None))
    assert result.report.exit_code == 2
    assert len(result.report.errors) == 3
    started = check(project.settings(2, do_train=False, deepspeed=None))
    assert messages(started)[0].startswith("error: Neither `do_train` nor `do_eval` is true")
    assert result.as_dict()["memory"] == {}


def test_what_does_not_fit(project: runs.Project, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    settings = project.settings(2)
    result = check(settings)
    assert result.report.exit_code == 5
    (problem,) = messages(result)
    assert problem.startswith("error: The iteration writes theta_{t+1} ")
    assert "97.7 KiB free. Free some, save fewer checkpoints (`save_total_limit`" in problem
    with pytest.raises(EnvironmentProblem, match=r"has 97\.7 KiB free"):
        check_start(make_plan(settings))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=int(sum(f.amount for f in result.disk)))
    )
    assert [finding.level for finding in check(settings).report.findings] == ["warning"]
    check_start(make_plan(settings))


def test_device_that_is_too_small(project: runs.Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_tpaw.runs import check as module
    from llamafactory_tpaw.runs.estimates.memory import Device

    monkeypatch.setattr(module, "device_of", lambda run: Device("a watch", 400_000))
    result = check(project.settings(2))
    assert result.report.exit_code == 5
    assert any("weights and optimizer, so no smaller batch helps" in text for text in messages(result))
    monkeypatch.setattr(module, "device_of", lambda run: Device("a phone", 1_200_000))
    result = check(project.settings(2))
    assert (result.report.exit_code, {finding.level for finding in result.report.findings}) == (0, {"warning"})


def test_model_shows_a_reward_of_zero(project: runs.Project) -> None:
    result = check(project.settings(2, **REAL), with_model=True)
    assert result.report.errors == []
    zero = result.step_zero
    assert zero.responses == 32
    assert zero.largest <= zero.allowed
    assert sorted(zero.fingerprints) == ["theta_0", "theta_1", "theta_2"]
    assert all(figure.how == "measured on a sample" for figure in result.time[:3])
    measured = json.loads(json.dumps(result.as_dict()))["step_zero"]["measured"]
    zero_at_times = {"training_begin"}
    assert all(seconds > 0 for name, seconds in measured.items() if name not in zero_at_times), measured
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
    assert check(settings).report.exit_code == 0
    result = check(settings, with_model=True)
    assert result.report.exit_code in (2, 3)
    assert "theta_2" in messages(result)[0]


def test_speed_is_positive() -> None:
    speed = measure_speed(torch.device("cpu"), None)
    assert speed.flops > 0 < speed.bandwidth
