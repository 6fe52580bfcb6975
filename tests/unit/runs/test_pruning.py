# SPDX-License-Identifier: Apache-2.0
"""Which weights are removed after an iteration, and which stay because something still needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_tpaw import cli
from llamafactory_tpaw.arguments.recorded import recorded_settings
from llamafactory_tpaw.data.files import locked
from llamafactory_tpaw.runs import pruning
from llamafactory_tpaw.runs.plan import make_plan
from llamafactory_tpaw.team.checkpoint import PRUNED, check_checkpoint_complete
from llamafactory_tpaw.team.fingerprint import fingerprint_checkpoint
from llamafactory_tpaw.team.manifest import write_manifest
from tests.unit.team.checkpoints import make_tensors, save_single
from tests.unit.team.test_manifest import make_manifest


ITERATIONS = 5
REQUIRED = {"template": "qwen", "dataset": "d0", "finetuning_type": "full"}


class Run:
    """θ_0 and five finished iterations with a team of two, in `saves/`."""

    def __init__(self, root: Path) -> None:
        self.root, self.folders = root, [save_single(root / "saves" / "sft", make_tensors())]
        for iteration in range(ITERATIONS):
            weights = {"w": make_tensors()["model.embed.weight"] + iteration}
            self.folders.append(save_single(root / "saves" / f"iter{iteration}", weights))
            step = save_single(self.folders[-1] / "checkpoint-4", make_tensors())
            for path in (step / "optimizer.pt", self.folders[-1] / "trainer_state.json"):
                path.write_text("{}")
        self.fingerprints = [fingerprint_checkpoint(folder, root / "cache") for folder in self.folders]
        for iteration in range(ITERATIONS):
            self.describe(iteration)

    def describe(self, iteration: int, **changes: Any) -> None:
        """Write the `tpaw.json` of an iteration."""
        team = []
        for theta in range(max(iteration - 1, 0), iteration + 1):
            path, fingerprint = f"../{self.folders[theta].name}", self.fingerprints[theta]
            team.append({"name": f"theta_{theta}", "path": path, "fingerprint": fingerprint})
        result = {"name": f"theta_{iteration + 1}", "fingerprint": self.fingerprints[iteration + 1]}
        settings = recorded_settings(self.settings(iteration) | REQUIRED)
        values = {"iteration": iteration, "policy": team[-1], "players": team, "result": result, "settings": settings}
        write_manifest(self.folders[iteration + 1], make_manifest(**values | changes))

    def settings(self, iteration: int, **changes: Any) -> dict[str, Any]:
        places = [f"saves/{folder.name}" for folder in self.folders[: iteration + 1]]
        return {
            "stage": "tpaw",
            "do_train": True,
            "model_name_or_path": places[-1],
            "tpaw_players": ",".join(places),
            "tpaw_iteration": iteration,
            "tpaw_team_size": 2,
            "tpaw_keep_checkpoints": "needed",
            "output_dir": f"saves/iter{iteration}",
        } | changes

    def prune(self, iteration: int = 4, run_file: Path | None = None, **changes: Any) -> None:
        pruning.prune(self.settings(iteration, **changes), str(run_file or ""))

    @property
    def whole(self) -> list[int]:
        return [theta for theta, folder in enumerate(self.folders) if (folder / "model.safetensors").is_file()]


@pytest.fixture
def run(elsewhere: Path) -> Run:
    return Run(elsewhere)


def test_theta_0_the_team_and_the_result_stay(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.prune()
    assert run.whole == [0, 3, 4, 5]
    for theta in (1, 2):
        left = {path.name for path in run.folders[theta].iterdir()}
        assert left == {"tpaw.json", "trainer_state.json", "config.json", PRUNED}
    assert json.loads((run.folders[1] / PRUNED).read_text())["by"] == "../iter4"
    assert [theta for theta in (3, 4, 5) if (run.folders[theta] / "checkpoint-4").exists()] == [5]
    assert cli.main(["lineage", "saves/iter4"]) == 0
    assert capsys.readouterr().out.count("pruned") == 2


def test_of_tspin_theta_t_alone_is_needed(run: Run) -> None:
    run.prune(tpaw_objective="tspin")
    assert run.whole == [0, 4, 5]


def test_nothing_goes_by_default_on_other_nodes_or_before_the_iteration_has_finished(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.prune(tpaw_keep_checkpoints="all")
    with monkeypatch.context() as patch:
        patch.setenv("NNODES", "2")
        patch.setenv("NODE_RANK", "1")
        run.prune()
    run.describe(4, status="training")
    run.prune()
    assert run.whole == [0, 1, 2, 3, 4, 5]
    assert (run.folders[4] / "checkpoint-4").exists()


@pytest.mark.parametrize(("status", "how"), [("training", "policy"), ("finished", "players")])
def test_what_another_run_names_stays(run: Run, status: str, how: str) -> None:
    named = {"name": "theta_1", "path": "../iter0", "fingerprint": run.fingerprints[1]}
    other = {"policy": named} if how == "policy" else {"players": [named]}
    write_manifest(run.root / "saves" / "other", make_manifest(status=status, **other))
    run.prune()
    assert run.whole == [0, 1, 3, 4, 5]


def test_nothing_goes_where_it_is_not_known_what_another_run_names(run: Run) -> None:
    other = run.root / "saves" / "other"
    write_manifest(other, make_manifest())
    (other / "tpaw.json").write_text("{")
    run.prune()
    assert run.whole == [0, 1, 2, 3, 4, 5]


def test_an_opponent_and_a_checkpoint_on_the_way_stay_where_they_are_named(run: Run) -> None:
    (run.folders[4] / "checkpoint-8").mkdir()
    source = {"entry": "d", "iteration": 0, "rows": 1, "digest": "x", "opponent": "../iter1"}
    policy = {"name": "theta_0", "path": "../iter3/checkpoint-4", "fingerprint": "f"}
    write_manifest(run.root / "saves" / "other", make_manifest(policy=policy, players=[], triplets=[source]))
    run.prune()
    assert run.whole == [0, 2, 3, 4, 5]
    assert sorted(path.name for path in run.folders[4].glob("checkpoint-*")) == ["checkpoint-4"]


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "dpo", "model_name_or_path": "saves/iter0", "output_dir": "saves/dpo"},
        {"stage": "sft", "ref_model": "saves/iter0", "output_dir": "saves/sft2"},
        {"model_name_or_path": "saves/iter0", "tpaw_players": "saves/sft,saves/iter0", "tpaw_iteration": 1,
         "output_dir": "saves/branch"},
        {"model_name_or_path": "saves/iter0", "tpaw_players": "saves/a_mistake", "tpaw_iteration": 1,
         "output_dir": "saves/branch"},
    ],
)  # fmt: skip
def test_what_a_run_file_beside_this_one_needs_stays(run: Run, changes: dict[str, Any]) -> None:
    own = run.root / "iter4.yaml"
    own.write_text(yaml.safe_dump(run.settings(4)))
    run.prune(run_file=own)
    assert run.whole == [0, 3, 4, 5]
    (run.root / "later.yaml").write_text(yaml.safe_dump(run.settings(4) | changes))
    save_single(run.folders[1], make_tensors())
    run.prune(run_file=own)
    assert run.whole == [0, 1, 3, 4, 5]


def test_what_is_in_use_stays(run: Run) -> None:
    with locked(run.folders[1], "it"):
        run.prune()
    assert run.whole == [0, 1, 3, 4, 5]


def test_a_crash_on_the_way_leaves_nothing_that_passes_for_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def die(path: Path, missing_ok: bool = False) -> None:
        if path.name == "model.safetensors":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            run.prune()
    assert 1 in run.whole
    assert "has no weights any more: they were pruned" in check_checkpoint_complete(run.folders[1])[0]
    run.prune()
    assert run.whole == [0, 3, 4, 5]


def test_a_finished_iteration_is_still_finished(run: Run) -> None:
    run.prune()
    assert make_plan(run.settings(0) | REQUIRED).is_finished
