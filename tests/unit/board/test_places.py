# SPDX-License-Identifier: Apache-2.0
"""What comes from a browser leads to no file outside the folders of LlamaBoard's runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.board.places import Places, dataset_folder
from llamafactory_tpaw.errors import ConfigError


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.chdir(tmp_path)
    for name in ("saves/Tiny/full/sft", "data", "yaml", "elsewhere", "saves-of-others"):
        Path(name).mkdir(parents=True)
    Path("saves/out").symlink_to(tmp_path / "elsewhere")
    Path("saves/loop").symlink_to(tmp_path / "saves" / "loop")
    return Places()


@pytest.mark.parametrize("given", ["saves/Tiny/full/sft", "data/tpaw/x.jsonl", "yaml/a.yaml", "./data/../yaml/new"])
def test_what_lies_inside_is_returned_as_given(places: Places, given: str) -> None:
    assert places.inside(given) == given
    assert places.inside(str(Path(given).absolute())) == str(Path(given).absolute())


@pytest.mark.parametrize(
    "given",
    [
        "/etc/passwd",
        "elsewhere",
        "saves/../elsewhere/file",
        "saves-of-others/x",
        "saves/out/file",
        "saves/loop/x",
        "saves/" + 300 * "x",
        "saves",
        "~/saves",
        "saves/a\0b",
        "saves/a\nb",
        "",
        "  ",
        None,
        7,
        ["saves/Tiny/full/sft"],
    ],
)
def test_what_leads_elsewhere_is_refused(places: Places, given: Any) -> None:
    for check in (places.inside, places.output_dir, places.checkpoint):
        with pytest.raises(ConfigError, match=r"Choose|choose"):
            check(given)


def test_the_message_names_both_sides(places: Places, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        places.output_dir("saves/out/x")
    assert "`output_dir` is 'saves/out/x', which is not below saves (it leads to " in str(caught.value)
    with pytest.raises(ConfigError, match="not below saves or data or yaml"):
        places.inside("elsewhere", "file")


def test_outputs_go_below_saves_only(places: Places) -> None:
    assert places.output_dir("saves/Tiny/full/new") == "saves/Tiny/full/new"
    with pytest.raises(ConfigError, match="not below saves"):
        places.output_dir("data/new")


def test_models_are_below_saves_or_offered(places: Places) -> None:
    assert places.checkpoint("saves/Tiny/full/sft")
    for given in ("Qwen/Qwen2.5-1.5B", "/models/base", "/models/base+saves/Tiny/full/sft"):
        with pytest.raises(ConfigError, match="`tpaw_players`"):
            places.checkpoint(given)
        assert places.checkpoint(given, allowed=("Qwen/Qwen2.5-1.5B", "/models/base")) == given
    with pytest.raises(ConfigError, match="'/etc'"):
        places.checkpoint("/models/base+/etc", allowed=("/models/base",))


def test_a_folder_that_is_a_link_itself_is_followed(places: Places, tmp_path: Path) -> None:
    large = Places(saves=Path("saves/out"))
    assert large.output_dir("elsewhere/run") == "elsewhere/run"
    assert large.output_dir("saves/out/run") == "saves/out/run"


@pytest.mark.parametrize("given", ["tpaw", "my run", "Qwen2.5-1.5B", "été", "..a"])
def test_names(places: Places, given: str) -> None:
    assert places.name(given, "run") == given


@pytest.mark.parametrize("given", ["a/b", "..", ".", "a\\b", "a,b", "a+b", "-a", " a", "a ", "a\n", "", None, 3])
def test_what_is_no_name_is_refused(places: Places, given: Any) -> None:
    with pytest.raises(ConfigError, match="`run` is"):
        places.name(given, "run")


def test_the_folder_of_a_model_is_the_boards(places: Places) -> None:
    assert places.run_folder("Tiny 2 B", "full") == Path("saves/Tiny2B/full")
    for names in (("..", "full"), ("Tiny", ".."), ("a/b", "full"), (None, "full")):
        with pytest.raises(ConfigError, match=r"`(model_name|finetuning_type)`"):
            places.run_folder(*names)
    with pytest.raises(ConfigError, match="`output_dir`"):
        places.run_folder("out", "full")


@pytest.mark.parametrize("given", ["data", "", None, "sets", "./sets/../data", "."])
def test_dataset_folder_lies_below_the_boards_own(places: Places, given: Any) -> None:
    assert dataset_folder(given) == Path(given or "data")


def test_data_may_be_a_link_and_no_other_folder(places: Places, tmp_path: Path) -> None:
    below = tmp_path / "board"
    below.mkdir()
    for name in ("data", "linked"):
        (below / name).symlink_to(tmp_path / "elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(below)
        assert dataset_folder("data") == Path("data")
        assert dataset_folder(str(below)) == below
        with pytest.raises(ConfigError, match=r"`dataset_dir` is 'linked'.*it leads to .*elsewhere.*start LlamaBoard"):
            dataset_folder("linked")


@pytest.mark.parametrize("given", ["/etc", "../elsewhere", "saves/out", "~\x00", 7, ["data"], {"a": 1}, "x" * 5000])
def test_dataset_folder_elsewhere_is_refused(places: Places, given: Any) -> None:
    Path("saves/out").unlink()
    Path("saves/out").symlink_to("/etc")
    with pytest.raises(ConfigError, match="`dataset_dir` is"):
        dataset_folder(given)
