# SPDX-License-Identifier: Apache-2.0
"""What is found from settings, names and headers alone."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.data.prompts import selection
from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.triplets import TripletMeta, meta_path, write_meta
from llamafactory_tpaw.errors import ConfigError, TpawError
from llamafactory_tpaw.generation.base import SamplingSettings
from llamafactory_tpaw.runs.plan import handed_plan, make_plan
from llamafactory_tpaw.team.fingerprint import fingerprint_checkpoint
from llamafactory_tpaw.team.manifest import write_manifest
from tests.runs import Project
from tests.unit.report.played import change_json
from tests.unit.team.test_manifest import make_manifest


SAMPLING = asdict(SamplingSettings(1.0, 1.0, 0, 1.0, max_new_tokens=16, seed=0))


@pytest.fixture
def project(tiny_model: Path, elsewhere: Path) -> Project:
    """A project before its first iteration, with θ_0 in `saves/sft`."""
    shutil.copytree(tiny_model, elsewhere / "saves" / "sft")
    return Project(elsewhere, Path("saves/sft"))


def write_triplets(iteration: int = 0, sampling: dict[str, Any] = SAMPLING, **chosen: Any) -> Path:
    """Write the files of a round, whose rows are not read here."""
    chosen = selection(chosen)
    path = Path(f"data/tpaw/play_iter{iteration}.jsonl")
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"id": "x", "iteration": 0, "finish_reason": "stop"}\n')
    write_meta(path, TripletMeta(iteration, "g", "p", "t", "t", "additions", "d", chosen, sampling, 256, {}, 1, "r"))
    return path


def problems_of(given: dict[str, Any]) -> list[str]:
    with pytest.raises(TpawError) as caught:
        make_plan(given)
    return caught.value.problems


def finish(project: Project, **changes: Any) -> dict[str, Any]:
    """Make `saves/play_iter0` a finished or begun iteration 0, and return its settings."""
    given = project.settings(0)
    fingerprint = fingerprint_checkpoint(Path("saves/sft"), Path("saves/.tpaw_cache"))
    theta = {"name": "theta_0", "path": "../sft", "fingerprint": fingerprint}
    shutil.copytree("saves/sft", "saves/play_iter0")
    settings = {key: given[key] for key in given if key not in ("model_name_or_path", "tpaw_players", "output_dir")}
    settings = {key: settings[key] for key in settings if key not in ("logging_steps", "save_strategy", "report_to")}
    values = {"policy": theta, "players": [theta], "settings": settings, "result": theta | {"name": "theta_1"}}
    write_manifest("saves/play_iter0", make_manifest(**values | changes))
    return given


class TestPlan:
    def test_missing_round_of_this_iteration_is_to_be_generated(self, project: Project) -> None:
        plan = make_plan(project.settings(0))
        assert [round_.path for round_ in plan.to_generate] == [Path("data/tpaw/play_iter0.jsonl")]
        assert [player.name for player in plan.players] == ["theta_0"]
        write_triplets()
        assert make_plan(project.settings(0)).to_generate == []

    def test_a_handed_plan_is_the_same_without_its_checks(self, project: Project) -> None:
        plan = make_plan(project.settings(0))
        assert handed_plan(plan.given) == plan
        Path("saves/sft/model.safetensors").unlink()
        assert handed_plan(plan.given) == plan

    def test_half_done_round_is_to_be_continued(self, project: Project) -> None:
        path = write_triplets()
        path.with_suffix(".meta.json").unlink()
        partial = Round.partial.fget(SimpleNamespace(path=path))
        partial.touch()
        assert len(make_plan(project.settings(0)).to_generate) == 1

    @pytest.mark.parametrize(
        ("key", "value", "before"),
        [
            ("tpaw_prompts", "others", "additions"),
            ("tpaw_max_prompts", 12, None),
            ("tpaw_prompts_seed", 3, 0),
            ("tpaw_turn", "first", "last"),
            ("tpaw_min_response", 4, 1),
            ("max_samples", 2, None),
            ("cutoff_len", 300, 256),
        ],
    )
    def test_triplets_for_other_prompts_are_not_taken(
        self, project: Project, key: str, value: Any, before: Any
    ) -> None:
        write_triplets()
        assert make_plan(project.settings(0)).to_generate == []
        (problem,) = problems_of(project.settings(0, **{key: value}))
        assert f"play_iter0.jsonl was made with other settings: `{key}` was {before} and is {value} now." in problem


@pytest.mark.parametrize("name", ["checkpoint-5", "model.safetensors", "pytorch_model.bin"])
def test_a_model_is_written_over_where_that_is_asked_for(project: Project, name: str) -> None:
    (project.root / "other" / name).mkdir(parents=True)
    (problem,) = problems_of(project.settings(0, output_dir="other"))
    assert problem.startswith("`output_dir: other` holds a model or checkpoints, but no tpaw.json")
    for allowed in ({"overwrite_output_dir": True}, {"resume_from_checkpoint": "other/checkpoint-5"}):
        make_plan(project.settings(0, output_dir="other", **allowed))


class TestFinished:
    def test_same_settings(self, project: Project) -> None:
        given = finish(project)
        assert make_plan(given).is_finished
        same = given | {
            "logging_steps": 7,
            "learning_rate": 1e-3,
            "tpaw_eta": 6,
            "model_name_or_path": "./saves/sft",
        }
        assert make_plan(same).is_finished

    def test_nothing_there_or_to_be_overwritten(self, project: Project) -> None:
        assert make_plan(project.settings(0)).earlier is None
        given = finish(project)
        assert make_plan(given | {"overwrite_output_dir": True, "tpaw_eta": 3.0}).earlier is None

    def test_begun_ones_matter_once_there_is_a_checkpoint(self, project: Project) -> None:
        given = finish(project, status="training") | {"tpaw_eta": 3.0}
        assert make_plan(given).earlier.status == "training"
        Path("saves/play_iter0/checkpoint-2").mkdir()
        with pytest.raises(ConfigError, match="was begun with other settings"):
            make_plan(given)

    def test_policy_of_the_same_content_may_move(self, project: Project) -> None:
        given = finish(project)
        shutil.move("saves/sft", "elsewhere")
        moved = given | {"model_name_or_path": "elsewhere", "tpaw_players": "elsewhere"}
        assert make_plan(moved).is_finished

    def test_policy_may_be_deleted_afterwards(self, project: Project) -> None:
        given = finish(project)
        shutil.rmtree("saves/sft")
        assert make_plan(given).is_finished
        other = given | {"model_name_or_path": "saves/none", "tpaw_players": "saves/none"}
        with pytest.raises(ConfigError, match=r"theta_0 was saves/sft and is saves/none now"):
            make_plan(other)


# -- rounds of opponent models and with several responses a prompt


def generated(**changes: Any) -> Path:
    """D_0, whose meta file says this."""
    path = write_triplets(tpaw_max_prompts=None)
    change_json(meta_path(path), **changes)
    return path


def test_a_round_is_held_to_its_opponent(project: Project) -> None:
    named = project.settings(0, tpaw_opponent_model="weak")
    (problem,) = problems_of(named)
    assert problem.startswith("`tpaw_opponent_model: weak`: weak")
    assert make_plan(named, {Path("weak").resolve()}).to_generate
    shutil.copytree("saves/sft", "weak")
    path = generated()
    fingerprint = fingerprint_checkpoint(Path("weak"), Path("saves/.tpaw_cache"))
    (problem,) = problems_of(named)
    assert problem.startswith(f"{path} was generated by theta_0 itself (p), fingerprint ")
    assert f"but `tpaw_opponent_model` is weak with {fingerprint[:12]}. Correct" in problem
    generated(opponent="../../weak", generator=fingerprint)
    assert make_plan(named).to_generate == []
    (problem,) = problems_of(project.settings(0))
    assert problem.startswith(f"{path} was generated by the opponent weak, fingerprint {fingerprint[:12]}, but")
    assert "`tpaw_opponent_model` is not set" in problem
    generated(samples=2, rows=2, ids_digest="x")
    (problem,) = problems_of(project.settings(0))
    assert "`tpaw_samples_per_prompt` was 2 and is 1 now" in problem
    generated(opponent="x", generator="served:1")
    served = {"tpaw_engine": "openai", "tpaw_engine_url": "http://localhost:1/v1", "tpaw_opponent_model": "x"}
    assert make_plan(project.settings(0, **served)).to_generate == []


@pytest.mark.parametrize(
    ("opponent", "same", "other", "problem"),
    [
        ("big", "big", None, r"the opponent was big and is none \(theta_0\) now"),
        ("big", "big", "small", "`tpaw_opponent_model`: the opponent was big and is small now"),
        ("../../weak", "moved", None, r"the opponent was weak and is none \(theta_0\) now"),
        ("", None, "big", r"the opponent was none \(theta_0\) and is big now"),
    ],
)
def test_a_finished_iteration_knows_its_opponent(
    project: Project, opponent: str, same: str | None, other: str | None, problem: str
) -> None:
    """By its name, or by its weights where it is a folder."""
    for name in ("weak", "moved"):
        shutil.copytree("saves/sft", name)
    fingerprint = fingerprint_checkpoint(Path("weak"), Path("saves/.tpaw_cache"))
    generator = fingerprint if "weak" in opponent else "served:1"
    own = {"entry": "play_iter0", "iteration": 0, "rows": 1, "digest": "d", "generator": generator}
    own["opponent"] = opponent
    given = finish(project, triplets=[own])
    assert make_plan(given | {"tpaw_opponent_model": same}).is_finished
    with pytest.raises(ConfigError, match=problem):
        make_plan(given | {"tpaw_opponent_model": other})
    with pytest.raises(ConfigError, match="`tpaw_samples_per_prompt` was 1 and is 2 now"):
        make_plan(given | {"tpaw_opponent_model": same, "tpaw_samples_per_prompt": 2})


def test_the_best_of_a_team_need_scores(project: Project) -> None:
    """A plan knows it, so that no round is generated first."""
    for t in range(2):
        shutil.copytree("saves/sft", f"saves/play_iter{t}")
    team = {"tpaw_team_size": 2, "tpaw_team_select": "best"}
    without = [problem for problem in problems_of(project.settings(2, **team)) if "eval.json" in problem]
    assert [problem.partition(" ")[0] for problem in without] == ["saves/sft", "saves/play_iter0"]
    assert without[0].endswith("Run `llamafactory-tpaw eval saves/sft`.")
    Path("saves/sft/eval.json").touch()
    assert sum("eval.json" in problem for problem in problems_of(project.settings(2, **team))) == 1
    with pytest.raises(TpawError) as caught:
        make_plan(
            project.settings(2, **team), {Path("saves/play_iter0").resolve()}
        )  # which is made, and evaluated, first
    assert not any("eval.json" in problem for problem in caught.value.problems)
    alone = project.settings(2, tpaw_team_size=1, tpaw_team_select="best")
    assert not any("eval.json" in problem for problem in problems_of(alone))
