# SPDX-License-Identifier: Apache-2.0
"""What the report reads: logs, manifests and accuracies end up at the right step of the right method."""

from __future__ import annotations

import shutil

import pytest

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.report.collect import Accuracy, compare, read_accuracies, read_run


def test_a_run_of_self_play(project):
    run = read_run(project.folder("iter1"))
    assert (run.produces, run.steps, run.seen, run.distinct) == ("theta_2", 20, 640, 320)
    assert run.players == ("theta_0", "theta_1")
    assert run.seconds == {"generate": 3.0, "score": 1.0, "train": 8.0}
    assert [row["step"] for row in run.logs] == [5, 10, 15, 20]


def test_series_run_over_iterations(project):
    team, plain = project.methods()
    first, second = team.series("rewards/target")
    assert first == [(5, 0.05), (10, 0.1)]
    assert second == [(15, 0.05), (20, 0.1), (25, pytest.approx(0.15)), (30, 0.2)]
    assert team.series("weights/player/theta_1") == [[], [(15, 0.5), (20, 0.5), (25, 0.5), (30, 0.5)]]
    assert plain.series("rewards/target") == []


def test_points_are_every_measured_checkpoint_in_order(project):
    team, plain = project.methods()
    assert [(point.label, point.steps, point.accuracy.correct) for point in team.points] == [
        ("theta_0", 0, 2),
        ("theta_1", 10, 3),
        ("theta_2", 30, 7),
    ]
    # The checkpoint of the last step is the result itself, so it is no separate point.
    assert [(point.label, point.steps) for point in plain.points] == [("theta_0", 0), ("step 12", 12), ("end", 30)]
    assert (team.steps, plain.steps, team.last.accuracy.share) == (30, 30, 0.7)


def test_compare_counts_pairs():
    """3 gained, 1 lost of 10: difference 0.2, its standard error sqrt((0.4 - 0.04) / 10) = 0.1897, p = 10/16."""
    difference = compare(Accuracy(10, 4, (0, 1), "1111000000"), Accuracy(10, 2, (0, 1), "1000100000"))
    assert difference.share == pytest.approx(0.2)
    assert difference.interval == pytest.approx((0.2 - 1.959964 * 0.189737, 0.2 + 1.959964 * 0.189737), abs=1e-5)
    assert difference.p == pytest.approx(0.625)


def test_compare_needs_the_same_problems():
    assert compare(Accuracy(4, 2, (0, 1), "1100"), Accuracy(3, 2, (0, 1), "110")) is None


def test_a_missing_run_is_named(project):
    shutil.rmtree(project.folder("iter1"))
    with pytest.raises(DataError, match=r"iter1.trainer_state.json does not exist"):
        project.methods()


def test_an_unmeasured_start_is_named(project):
    project.accuracy.write_text("[]")
    with pytest.raises(DataError, match=r"No accuracy of .*sft, from which team started"):
        project.method("team", "iter0")


@pytest.mark.parametrize("text", ["{", "[{}]"])
def test_a_damaged_accuracy_file_is_named(tmp_path, text):
    path = tmp_path / "accuracy.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"accuracy.json is no file of accuracies"):
        read_accuracies(path)
