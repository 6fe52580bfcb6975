# SPDX-License-Identifier: Apache-2.0
"""The triplet browser and the chat: what their elements offer and show. The page itself is driven in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import yaml

from llamafactory_tpaw.board import results, tab
from llamafactory_tpaw.board.browser import _Browser, create_browser_tab
from llamafactory_tpaw.board.chat import _Chat, create_chat_tab
from llamafactory_tpaw.board.compare import Checkpoint, Sampling
from llamafactory_tpaw.board.hover import add_hover_help
from llamafactory_tpaw.board.locales import HELP, LANGUAGES, LOCALES
from llamafactory_tpaw.board.page import Page
from llamafactory_tpaw.board.places import Places
from llamafactory_tpaw.data.source import triplet_entry
from llamafactory_tpaw.data.triplets import TripletRow
from llamafactory_tpaw.errors import EnvironmentProblem


WHERE = ("Tiny", "full", "data")
# Shown by the elements themselves, in no language.
WORDLESS = {
    "tpaw_browser_counts",
    "tpaw_browser_rows",
    "tpaw_chat_first_answers",
    "tpaw_chat_second_answers",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """A folder with the run `play`, of which two rounds are sampled, and a ranking set that is none of its."""
    monkeypatch.chdir(tmp_path)
    Path("data/tpaw").mkdir(parents=True)
    Path("yaml").mkdir()
    theta_1 = tmp_path / "saves" / "Tiny" / "full" / "theta_1"
    theta_1.parent.mkdir(parents=True)
    theta_1.symlink_to(tiny_model)
    rounds = ("play_iter0", "play_iter1")
    info = {name: triplet_entry(name) for name in (*rounds, "other_iter0")}
    Path("data/foreign.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n')
    info["foreign"] = {"file_name": "foreign.jsonl", "ranking": True}
    Path("data/dataset_info.json").write_text(json.dumps(info))
    for iteration, name in ((0, "play_iter0"), (1, "play_iter1"), (0, "other_iter0")):
        Path(f"data/tpaw/{name}.jsonl").write_text("".join(line(number, iteration) for number in range(1, 26)))
    players = [str(tiny_model), "saves/Tiny/full/theta_1"]
    for iteration in range(2):
        settings = {
            "stage": "tpaw",
            "model_name_or_path": players[iteration],
            "tpaw_iteration": iteration,
            "tpaw_players": ",".join(players[: iteration + 1]),
            "tpaw_prompts": "sums",
            "dataset": ",".join(rounds[: iteration + 1]),
            "template": "qwen",
            "default_system": "Be brief.",
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 0,
            "max_new_tokens": 64,
            "output_dir": f"saves/Tiny/full/play_iter{iteration}",
        }
        Path(f"yaml/play_iter{iteration}.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def line(number: int, iteration: int) -> str:
    row = TripletRow(
        id=f"{number:016x}-0",
        iteration=iteration,
        messages=[{"role": "user", "content": f"question {number}"}],
        system="",
        tools="",
        target={"role": "assistant", "content": f"answer {number}"},
        generated=f"answer {number}" if number == 3 else f"reply {number}",
        finish_reason="length" if number == 4 else "stop",
        generated_ids=[number],
    )
    return row.to_json() + "\n"


@pytest.fixture
def page() -> Iterator[Page]:
    with gr.Blocks():
        elements = [gr.Textbox() for _ in range(4)]
        with gr.Tab("any") as block:
            yield Page(*elements, block, lambda folder: Places(dataset_dir=Path(folder)))


@pytest.fixture
def browser(page: Page) -> _Browser:
    return _Browser(page, create_browser_tab(page))


class FakePair:
    """Answers with what it was asked; fails where the question says so."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.arguments: list[Mapping[str, Any]] = []
        self.asked: list[tuple[Any, ...]] = []

    @property
    def loaded(self) -> bool:
        return bool(self.names)

    def load(self, checkpoints: Sequence[Checkpoint], arguments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        self.arguments = list(arguments)
        yield from (checkpoint.name for checkpoint in checkpoints)
        self.names = tuple(checkpoint.name for checkpoint in checkpoints)

    def unload(self) -> None:
        self.names = ()

    def ask(self, conversations: Sequence[Any], system: str, sampling: Sampling) -> Iterator[list[str]]:
        self.asked.append((conversations, system, sampling))
        yield ["left", ""]
        if conversations[0][-1]["content"] == "fail":
            raise EnvironmentProblem("θ_1 cannot answer: out of <memory>")
        yield ["left answer", "<b>right</b>"]


@pytest.fixture
def talk(page: Page) -> _Chat:
    return _Chat(page, create_chat_tab(page), FakePair())


def offered(dropdown: Any) -> list[tuple[str, str]]:
    return [tuple(choice) for choice in dropdown.choices]


def test_elements_and_texts_agree(page: Page) -> None:
    """Every element of ours has its texts, no text is without an element, and the component takes them."""
    elements = create_browser_tab(page) | create_chat_tab(page)
    tabs = {"tpaw_browser_tab", "tpaw_chat_tab"}
    named = {name for name in LOCALES if name.startswith(("tpaw_browser_", "tpaw_chat_"))}
    assert set(elements) == named - tabs | WORDLESS
    for name, element in elements.items():
        assert element.elem_id == name
        for lang in LANGUAGES if name in LOCALES else ():
            assert element.__class__(**LOCALES[name][lang])


def test_the_train_tabs_elements_have_texts(page: Page) -> None:
    elements = tab._build() | results.build_results()
    assert set(elements) <= set(LOCALES)
    assert {"tpaw_eta", "tpaw_players", "tpaw_engine"} <= set(elements)
    for name, element in elements.items():
        assert element.elem_id == name
        for lang in LANGUAGES:
            assert element.__class__(**LOCALES[name][lang])


def test_hover_help_is_sent_once(page: Page) -> None:
    add_hover_help(page.lang)
    scripts = [script for fn in gr.context.Context.root_block.fns.values() if (script := fn.js)]
    assert len(scripts) == 1
    assert json.dumps(HELP["tpaw_eta"]["ja"]) in scripts[0]


def test_runs_and_their_rounds_are_offered(run: Path, browser: _Browser) -> None:
    runs = browser.offer_runs(None, *WHERE)
    assert [value for _, value in offered(runs)] == ["", "play"]
    files = browser.offer_files("play", None, *WHERE)
    assert [value for _, value in offered(files)] == ["play_iter0", "play_iter1"]
    assert files.value == "play_iter0"
    assert browser.offer_files("play", "play_iter1", *WHERE).value == "play_iter1"
    everything = browser.offer_files("", "foreign", *WHERE)
    assert [value for _, value in offered(everything)] == ["play_iter0", "play_iter1", "other_iter0"]


@pytest.mark.parametrize("name", ["..", "../../etc", "/etc", "a/b"])
def test_a_run_that_leads_elsewhere_is_refused(run: Path, browser: _Browser, talk: _Chat, name: str) -> None:
    with pytest.warns(UserWarning, match="must be a name"):
        assert offered(browser.offer_files(name, None, *WHERE)) == []
    assert "must be a name" in talk.fill_in("en", name, *WHERE)[-1]
    with pytest.warns(UserWarning, match="must be a name"):
        browser.offer_runs(None, name, "full", "data")


def test_pages_and_filters(run: Path, browser: _Browser) -> None:
    counts, rows, number = browser.show("en", "play_iter0", "all", "all", "", 1, "data")
    assert "25 of 25 triplets match · equal 1 · truncated 1 · page 1 of 3" in counts
    assert "question 10" in rows
    assert "question 11" not in rows
    assert number == 1
    assert browser.show("en", "play_iter0", "all", "all", "", 99, "data")[2] == 3
    assert browser.show("en", "play_iter0", "all", "all", "", None, "data")[2] == 1
    for equal, truncated, search, matching, shown in (
        ("only", "all", "", 1, "question 3"),
        ("without", "all", "", 24, "question 4"),
        ("all", "only", "", 1, "question 4"),
        ("all", "without", "", 24, "question 3"),
        ("only", "only", "", 0, "No triplets match."),
        ("all", "all", "QUESTION 2", 7, "question 25"),
    ):
        counts, rows, _ = browser.show("en", "play_iter0", equal, truncated, search, 1, "data")
        assert f"{matching} of 25" in counts
        assert shown in rows
    assert "第 1 / 3 页" in browser.show("zh", "play_iter1", "all", "all", "", 1, "data")[0]


def test_what_cannot_be_read_is_told_as_text(run: Path, browser: _Browser) -> None:
    counts, rows, _ = browser.show("en", "<b>no</b>", "all", "all", "", 1, "data")
    assert "&lt;b&gt;no&lt;/b&gt;" in counts
    assert "<b>" not in counts
    assert rows == ""
    assert "choose a run" in browser.show("en", None, "all", "all", "", 1, "data")[0]
    assert "no triplets" in browser.show("en", "foreign", "all", "all", "", 1, "data")[0]


def test_a_run_fills_in_its_settings(run: Path, talk: _Chat, tiny_model: Path) -> None:
    first, second, template, system, *sampling, status = talk.fill_in("en", "play", *WHERE)
    assert offered(first) == [(f"θ_0 · {tiny_model}", "θ_0"), ("θ_1 · saves/Tiny/full/theta_1", "θ_1")]
    assert (first.value, second.value) == ("θ_0", "θ_1")
    assert (template.value, system) == ("qwen", "Be brief.")
    assert sampling == [0.5, 0.9, 64]
    assert status == "Nothing is loaded."
    runs, kept, gone = talk.offer("en", "play", "θ_1", "θ_9", *WHERE)
    assert (runs.value, gone["value"]) == ("play", None)
    assert kept["choices"] == gone["choices"] == offered(first)
    assert "value" not in kept
    runs, *untouched = talk.offer("en", None, "θ_1", None, *WHERE)
    assert runs.value == "play"
    assert all("choices" not in each for each in untouched), "whoever fills in the run chooses"


def load(talk: _Chat, first: str | None = "θ_0", second: str | None = "θ_1", template: str = "qwen") -> list[str]:
    return [status for status, *_ in talk.load("en", "play", first, second, template, False, *WHERE)]


def test_the_chosen_two_are_loaded(run: Path, talk: _Chat, tiny_model: Path) -> None:
    assert load(talk) == ["Loading θ_0…", "Loading θ_1…", "θ_0 and θ_1 are loaded, ask them something."]
    models = [arguments["model_name_or_path"] for arguments in talk.pair.arguments]
    assert models == [str(tiny_model), "saves/Tiny/full/theta_1"]
    assert all(arguments["trust_remote_code"] is False for arguments in talk.pair.arguments)
    assert talk.pair.arguments[0]["default_system"] == "Be brief."
    assert load(talk) == ["θ_0 and θ_1 are loaded, please unload them first."]
    assert talk.unload("en")[0] == "Nothing is loaded."


@pytest.mark.parametrize(
    ("first", "second", "template"),
    [("θ_0", "θ_7", "qwen"), (None, "θ_1", "qwen"), ("/etc", "θ_1", "qwen"), ("θ_0", "θ_1", "no such template")],
)
def test_only_what_is_offered_can_be_loaded(run: Path, talk: _Chat, first: Any, second: Any, template: str) -> None:
    assert load(talk, first, second, template) == ["Please choose a run and two checkpoints."]
    assert not talk.pair.arguments


def test_loading_beside_a_run_warns(run: Path, talk: _Chat) -> None:
    talk.page = talk.page._replace(playing=lambda: True)
    with pytest.warns(UserWarning, match="Self-play is running"):
        assert all("Self-play is running" in status for status in load(talk))


def test_each_sees_its_own_history(run: Path, talk: _Chat) -> None:
    load(talk)
    *_, (query, _, history, left, right) = talk.ask("en", "first?", [], "Be kind.", 0.0, 1.0, 8)
    assert query == ""
    assert history == [("first?", "left answer", "<b>right</b>")]
    assert "left answer" in left
    assert "&lt;b&gt;right&lt;/b&gt;" in right
    assert "left" not in right.rpartition("</style>")[2]
    list(talk.ask("en", "second?", history, "", 0.0, 1.0, 8))
    (first, system, sampling), (second, *_) = talk.pair.asked
    assert (system, sampling) == ("Be kind.", Sampling(0.0, 1.0, 8))
    assert first == [[{"role": "user", "content": "first?"}]] * 2
    assert [message["content"] for message in second[0]] == ["first?", "left answer", "second?"]
    assert [message["content"] for message in second[1]] == ["first?", "<b>right</b>", "second?"]


def test_a_failed_question_can_be_asked_again(run: Path, talk: _Chat) -> None:
    load(talk)
    history = [("before", "a", "b")]
    *_, (query, status, kept, left, _) = talk.ask("en", "fail", history, "", 0.0, 1.0, 8)
    assert (query, kept) == ("fail", history)
    assert status == "That did not work: θ_1 cannot answer: out of <memory>"
    assert "fail" not in left


def test_nothing_is_asked_without_a_question_or_models(talk: _Chat) -> None:
    assert next(talk.ask("en", "hello", [], "", 0.0, 1.0, 8))[1] == "Nothing is loaded."
    talk.pair.names = ("θ_0", "θ_1")
    assert next(talk.ask("ko", "  ", [], "", 0.0, 1.0, 8))[1] == "질문을 입력하십시오."
    assert talk.pair.asked == []
