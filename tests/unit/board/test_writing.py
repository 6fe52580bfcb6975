# SPDX-License-Identifier: Apache-2.0
"""Run files in output folders: what the command line reads, all or none, and folders that stay new ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.board.places import Places
from llamafactory_tpaw.board.runs import following, write_run_files
from llamafactory_tpaw.data.files import locked
from llamafactory_tpaw.data.source import triplet_entry
from llamafactory_tpaw.errors import ConfigError, DataError, EnvironmentProblem, InUseError
from llamafactory_tpaw.lf.given import read_given
from tests.unit.board.projects import committed, copy_project


INFO = Path("data/dataset_info.json")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.chdir(tmp_path)
    copy_project()
    return Places()


def mine(count: int = 3, **changes: Any) -> list[dict[str, Any]]:
    """Settings of a run that is on no disk yet."""
    first = committed("tiny_tpaw_iter0") | {
        "output_dir": "saves/Tiny/full/mine_iter0",
        "dataset": "tiny_mine_iter0",
        "default_system": "é 😀",
    }
    return following(Places(), first | changes, count)


def everything() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file() and ".lock" not in path.name}


def test_run_files_are_what_the_command_line_reads(places: Places) -> None:
    files = write_run_files(places, mine(learning_rate=1.5e-7, seed=None))
    assert files == [Path(f"saves/Tiny/full/mine_iter{number}/training_args.yaml") for number in range(3)]
    wanted = [{key: value for key, value in each.items() if value is not None}
              for each in mine(learning_rate=1.5e-7, seed=None)]  # fmt: skip
    assert [read_given([str(path)]) for path in files] == wanted
    assert "seed" not in wanted[0]
    assert wanted[2]["default_system"] == "é 😀"
    assert files[1].read_text().startswith(f"# llamafactory-cli train {files[1]}\n")


def test_entries_are_added_and_others_stay(places: Places) -> None:
    before = INFO.read_text()
    write_run_files(places, mine())
    info = json.loads(INFO.read_text())
    added = {f"tiny_mine_iter{number}": triplet_entry(f"tiny_mine_iter{number}") for number in range(3)}
    assert info == json.loads(before) | added
    assert INFO.read_text().startswith(before.rstrip().removesuffix("}").rstrip())
    other = info | {"tiny_mine_iter1": {"file_name": "elsewhere.jsonl", "ranking": True}}
    INFO.write_text(json.dumps(other))
    write_run_files(places, mine())
    assert json.loads(INFO.read_text()) == other


def test_without_prompts_no_entry_is_made(places: Places) -> None:
    before = INFO.read_text()
    write_run_files(places, mine(1, tpaw_prompts=None))
    assert INFO.read_text() == before


def test_a_run_file_is_written_over(places: Places) -> None:
    write_run_files(places, mine(1))
    (path,) = write_run_files(places, mine(1, tpaw_eta=2.0))
    assert read_given([str(path)])["tpaw_eta"] == 2.0
    assert [each.name for each in path.parent.iterdir()] == ["training_args.yaml"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_dir": "../mine_iter0"}, "`output_dir` is '../mine_iter0', which is not below saves"),
        ({"output_dir": None}, "`output_dir` is None"),
        ({"dataset": "../../mine"}, "`dataset` is '../../mine', but must be a name"),
        ({"dataset": []}, "`dataset` is empty"),
        ({"dataset_dir": "elsewhere"}, "`dataset_dir` is 'elsewhere'"),
        ({"swanlab_api_key": "abc"}, "`swanlab_api_key` is not written to a file"),
    ],
)
def test_what_is_refused_writes_nothing(places: Places, changes: dict[str, Any], message: str) -> None:
    before = everything()
    with pytest.raises(ConfigError) as caught:
        write_run_files(places, [*mine(2), mine(1)[0] | {"output_dir": "saves/Tiny/full/other_iter0"} | changes])
    assert message in str(caught.value)
    assert "abc" not in str(caught.value)
    assert not Path("saves").exists()
    assert everything() == before


def test_two_iterations_have_two_folders(places: Places) -> None:
    with pytest.raises(ConfigError, match="`output_dir` is the same for two iterations"):
        write_run_files(places, mine(1) * 2)


def test_a_damaged_list_of_datasets_is_left_as_it_is(places: Places) -> None:
    INFO.write_text("[1]")
    before = everything()
    with pytest.raises(DataError, match="must hold one JSON object"):
        write_run_files(places, mine())
    assert everything() == before


def test_another_writer_is_waited_for_by_the_user(places: Places) -> None:
    before = everything()
    with locked(INFO, str(INFO)), pytest.raises(InUseError, match=r"dataset_info\.json is in use"):
        write_run_files(places, mine())
    assert everything() == before


def test_a_folder_that_cannot_be_written_to(places: Places) -> None:
    Path("saves/Tiny").mkdir(parents=True)
    Path("saves/Tiny/full").write_text("a file")
    before = everything()
    with pytest.raises(EnvironmentProblem, match=r"saves/Tiny/full/mine_iter0/training_args\.yaml cannot be written"):
        write_run_files(places, mine())
    assert everything() == before
