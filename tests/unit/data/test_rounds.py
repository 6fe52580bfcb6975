# SPDX-License-Identifier: Apache-2.0
"""Which entries of `dataset` are which rounds, and every message about those that do not fit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from llamafactory_tpaw.arguments.fields import TpawArguments
from llamafactory_tpaw.data.rounds import (
    Opponents,
    Round,
    list_opponents,
    opponent_problems,
    origin_problems,
    round_problems,
    split_names,
)
from llamafactory_tpaw.data.source import find_entry, triplet_entry
from llamafactory_tpaw.data.triplets import TripletMeta, meta_path
from llamafactory_tpaw.errors import ConfigError
from tests.unit.data.writing import make_prompt, make_row, write_round


if TYPE_CHECKING:
    from llamafactory_tpaw.data.encoding import TurnEncoder
    from tests.runs import Project


TSPIN = {"tpaw_iteration": 1, "tpaw_objective": "tspin"}


@pytest.fixture
def rounds(project: Project, encoder: TurnEncoder) -> Project:
    """Finished rounds d0 and d1, entries d2 and d3 without files, other pairs, and an SFT set."""
    for iteration in (0, 1):
        row = make_row(encoder, make_prompt(encoder), "3", iteration=iteration)
        write_round(project, encoder, [row], f"d{iteration}")
    for name in ("d2", "d3"):
        project.add_entry(name, triplet_entry(name))
    columns = {"prompt": "q", "chosen": "a", "rejected": "b"}
    project.add_dataset("pairs", [{"q": "?", "a": "x", "b": "y"}], ranking=True, columns=columns)
    project.add_entry("hub", {"hf_hub_url": "some/pairs", "ranking": True})
    return project


def opponents(project: Project, *names: str, **keys: Any) -> Opponents:
    return list_opponents(TpawArguments(**({"tpaw_prompts": "additions"} | keys)), names, str(project.root / "data"))


def problems(project: Project, *names: str, **keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        opponents(project, *names, **keys)
    return error.value.problems


def names_of(found: Opponents) -> list[tuple[int, str]]:
    return [(round_.iteration, round_.entry.name) for round_ in found.rounds]


def test_split_names() -> None:
    assert split_names("a, b,,c ") == split_names(["a", " b", "c"]) == ["a", "b", "c"]
    assert split_names(None) == split_names("") == []


def test_rounds_are_numbered_from_the_last(rounds: Project) -> None:
    found = opponents(rounds, "d0", "d1", "d2", tpaw_iteration=2)
    assert names_of(found) == [(0, "d0"), (1, "d1"), (2, "d2")]
    assert found.missing == found.rounds[2:]
    assert (found.foreign, found.ignored, found.proto) == ([], [], None)
    assert names_of(opponents(rounds, "d1", "d2", "d3", tpaw_iteration=3)) == [(1, "d1"), (2, "d2"), (3, "d3")]


def test_older_rounds_are_ignored(rounds: Project) -> None:
    found = opponents(rounds, "d0", "d1", "d2", tpaw_iteration=2, tpaw_team_size=2)
    assert names_of(found) == [(1, "d1"), (2, "d2")]
    assert found.ignored == ["d0"]
    found = opponents(rounds, "d0", "d1", tpaw_iteration=1, tpaw_objective="tspin", tpaw_proto="d0")
    assert names_of(found) == [(1, "d1")]
    assert (found.proto.iteration, found.proto.entry.name) == (0, "d0")
    assert opponents(rounds, "d0", tpaw_objective="tspin").proto is None


def test_other_ranking_data_needs_no_rounds(rounds: Project) -> None:
    found = opponents(rounds, "pairs", "hub", tpaw_iteration=2, tpaw_prompts=None)
    assert names_of(found) == []
    assert [entry.name for entry in found.foreign] == ["pairs", "hub"]
    mixed = opponents(rounds, "d0", "d1", "pairs", tpaw_iteration=1)
    assert names_of(mixed) == [(0, "d0"), (1, "d1")]
    assert [entry.name for entry in mixed.foreign] == ["pairs"]


@pytest.mark.parametrize(
    ("names", "keys", "message"),
    [
        (["d1"], {"tpaw_iteration": 1}, "`dataset` lists 1 round of triplets, but iteration 1 with a team of 3 plays"),
        (["d2"], {"tpaw_iteration": 3, "tpaw_team_size": 2}, "`dataset` lists 1 round of .* 2: D_2 to D_3, oldest"),
        ([], {}, "`dataset` lists 0 rounds"),
        (["d1", "pairs"], {"tpaw_iteration": 1}, "`dataset` lists 1 round of triplets"),
        (
            ["d0", "d1", "d2"],
            {"tpaw_iteration": 1},
            "`dataset` lists 3 rounds of triplets, but .* most 2: D_0 to D_1",
        ),
        (["d0", "additions"], {}, r"`dataset: additions` is not a ranking set \(`ranking: true`\)"),
        (["d2"], {"tpaw_prompts": None}, r"`dataset: d2` names .*d2\.jsonl, which does not exist, and without"),
        (["d1"], TSPIN, "`tpaw_objective: tspin` needs `tpaw_proto` from iteration 1 on"),
        (["d1"], TSPIN | {"tpaw_proto": "d9"}, "`tpaw_proto: d9` is not an entry of "),
        (
            ["d1"],
            TSPIN | {"tpaw_proto": "hub"},
            "`tpaw_proto: hub` is not a file of triplets that were generated here",
        ),
    ],
)
def test_lists_that_cannot_be_played(rounds: Project, names: list[str], keys: dict[str, Any], message: str) -> None:
    (problem,) = problems(rounds, *names, **keys)
    assert re.match(message, problem)


def test_round_problems(rounds: Project) -> None:
    folder = str(rounds.root / "data")
    d0, d2 = find_entry("d0", folder), find_entry("d2", folder)
    assert round_problems(Round(0, d0), may_be_generated=False) == []
    assert round_problems(Round(2, d2), may_be_generated=True) == []
    (absent,) = round_problems(Round(2, d2), may_be_generated=False)
    assert absent.startswith(f"`dataset: d2` holds the triplets of theta_2, but {d2.path} and its meta file are not")
    (swapped,) = round_problems(Round(1, d0), may_be_generated=True)
    assert swapped.startswith("`dataset: d0` stands where the triplets of theta_1 belong, but")
    meta_path(d0.path).write_text("{")
    (broken,) = round_problems(Round(0, d0), may_be_generated=False)
    assert "d0.meta.json is not valid JSON" in broken


def by_opponent(project: Project, encoder: TurnEncoder, **changes: Any) -> tuple[Round, TripletMeta]:
    """D_1, generated by the opponent `models/weak`, whose fingerprint is all e."""
    changes = {"opponent": "../../models/weak", "generator": "e" * 64} | changes
    row = make_row(encoder, make_prompt(encoder), "3", iteration=1)
    entry, meta = write_round(project, encoder, [row], "d1", **changes)
    return Round(1, entry), meta


def test_rounds_of_opponents_are_not_held_to_the_players(rounds: Project, encoder: TurnEncoder) -> None:
    players = {0: ("saves/sft", "f" * 64), 1: ("saves/iter0", "a" * 64)}
    round_, meta = by_opponent(rounds, encoder)
    assert origin_problems([(round_, meta)], players) == []
    (problem,) = origin_problems([by_opponent(rounds, encoder, opponent="")], players)
    assert "fingerprint eeeeeeeeeeee" in problem
    assert "theta_1 is saves/iter0 with aaaaaaaaaaaa" in problem


@pytest.mark.parametrize("here", [False, True])
def test_the_named_opponent_is_accepted(
    rounds: Project, encoder: TurnEncoder, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    monkeypatch.chdir(rounds.root)
    if here:
        (rounds.root / "models" / "weak").mkdir(parents=True)
    round_, meta = by_opponent(rounds, encoder)
    named = "models/weak/" if here else "../../models/weak"
    assert opponent_problems(round_, meta, named) == []
    assert opponent_problems(round_, meta, str(rounds.root / "moved"), "e" * 64) == []
    served = by_opponent(rounds, encoder, opponent="org/served", generator="served:" + "1" * 64)
    assert opponent_problems(*served, "org/served") == opponent_problems(*served, "org/served", "e" * 64) == []


def test_another_generator_than_the_run_names(rounds: Project, encoder: TurnEncoder) -> None:
    weak = by_opponent(rounds, encoder, opponent="org/weak")
    for named, fingerprint, message in (
        (None, None, "was generated by the opponent org/weak, not by theta_1, and this run names none"),
        ("org/other", None, "was generated by the opponent org/weak, but `tpaw_opponent_model` names org/other"),
        ("org/weak", "a" * 64, "was generated by the opponent org/weak with fingerprint eeeeeeeeeeee, but"),
    ):
        (problem,) = opponent_problems(*weak, named, fingerprint)
        assert message in problem
        assert f"delete {weak[0].path} and {meta_path(weak[0].path)} to generate it again" in problem
    own = by_opponent(rounds, encoder, opponent="")
    assert opponent_problems(*own, None) == []
    (problem,) = opponent_problems(*own, "org/weak")
    assert "was generated by theta_1 itself (saves/theta_0), but" in problem
