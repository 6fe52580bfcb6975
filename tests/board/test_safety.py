# SPDX-License-Identifier: Apache-2.0
"""What a model wrote is text in the page, and a browser gets nothing from outside of the run and data folders."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.data.source import triplet_entry
from llamafactory_tpaw.data.triplets import TripletRow
from tests.board.browsing import Board
from tests.board.hostile import TEXTS, assert_unharmed
from tests.board.playing import choose_run
from tests.board.server import Server
from tests.runs import Project


pytestmark = pytest.mark.integration
LOOPBACK = "0100007F"
SECRET = "4f1c-not-for-the-browser"


def triplet(number: int, text: str) -> str:
    row = TripletRow(
        id=f"{number:016x}-0",
        iteration=0,
        messages=[{"role": "user", "content": f"prompt {text}"}],
        system="",
        tools="",
        target={"role": "assistant", "content": f"target {text}"},
        generated=f"generated {text}",
        finish_reason="stop",
        generated_ids=[number],
    )
    return row.to_json() + "\n"


def test_server_listens_on_loopback_only(board: Board, server: Server) -> None:
    assert server.listening() == {LOOPBACK}
    # Gradio's own page asks for a font and a script; nothing else is asked for.
    hosts = {url.split("/")[2] for url in board.asked_outside}
    assert hosts <= {"fonts.googleapis.com", "cdnjs.cloudflare.com"}


def test_generated_text_is_shown_as_it_is(board: Board, project: Project) -> None:
    (project.root / "data" / "tpaw").mkdir(exist_ok=True)
    path = project.root / "data" / "tpaw" / "hostile_iter0.jsonl"
    path.write_text("".join(triplet(number, text) for number, text in enumerate(TEXTS.values())))
    project.add_entry("hostile_iter0", triplet_entry("hostile_iter0"))
    board.tab("Triplets").click()
    board.page.wait_for_function("document.querySelector('#tpaw_browser_file input').value")
    board.fill("tpaw_browser_file", "hostile_iter0")
    for kind in ("prompt", "target", "generated"):
        cells = board.page.locator(f".tpaw-{kind} .tpaw-text")
        cells.filter(has_text=f"{kind} {TEXTS['style']}").wait_for()
        assert cells.all_text_contents() == [f"{kind} {text}" for text in TEXTS.values()]
    board.picture("triplets-hostile")
    assert_unharmed(board)


def test_text_in_messages_is_shown_as_it_is(board: Board, project: Project) -> None:
    choose_run(board, project, "play")
    board.fill("tpaw_prompts", TEXTS["image"] + TEXTS["script"])
    board.press("Start")
    board.message("tpaw_prompts")
    board.wait_for(TEXTS["image"])
    assert_unharmed(board)


@pytest.fixture(scope="module")
def outside(project: Project) -> Path:
    """A folder beside the board's own that holds what the board could show: a run, triplets and a report."""
    folder = project.root.parent / "outside"
    run = folder / "run_iter0"
    run.mkdir(parents=True)
    (folder / "triplets.jsonl").write_text(triplet(0, SECRET))
    (folder / "dataset_info.json").write_text(json.dumps({SECRET: triplet_entry("secret")}))
    for name in ("config.json", "tpaw.json", "tpaw_report.html", "training_args.yaml", "trainer_log.jsonl"):
        (run / name).write_text(json.dumps({"stage": "tpaw", "secret": SECRET}))
    return folder


def test_files_are_served_from_nowhere_else(server: Server, outside: Path) -> None:
    report = outside / "run_iter0" / "tpaw_report.html"
    for path in (outside / "triplets.jsonl", report, "/etc/passwd", "../outside/triplets.jsonl"):
        assert fetch(server, f"gradio_api/file={path}")[0] in (403, 404)


def test_no_endpoint_of_ours_leaves_the_folders(server: Server, project: Project, outside: Path) -> None:
    config = json.loads(fetch(server, "config")[1])
    parts = {part["id"]: part for part in config["components"]}
    before = state_of(outside)
    called = 0
    for endpoint in config["dependencies"]:
        names = [str(parts[part]["props"].get("elem_id") or "") for part in endpoint["inputs"] + endpoint["outputs"]]
        if not endpoint["backend_fn"] or not any(name.startswith("tpaw_") for name in names):
            continue
        for place in (
            outside,
            outside / "run_iter0",
            outside / "triplets.jsonl",
            Path("..") / "outside" / "run_iter0",
        ):
            data = [crafted(parts[part], str(place)) for part in endpoint["inputs"]]
            answer = call(server, endpoint["id"], data)
            assert SECRET not in answer, (names, place)
            called += 1
    assert called > 20
    assert state_of(outside) == before
    assert not server.descendants()


def crafted(part: dict[str, Any], place: str) -> Any:
    """A path for every field that takes a text; what it shows for the others."""
    value = part["props"].get("value")
    if part["type"] == "dropdown":
        return [place] if part["props"].get("multiselect") else place
    return place if part["type"] in ("textbox", "html", "markdown") else value


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fetch(server: Server, path: str, body: bytes | None = None) -> tuple[int, str]:
    request = urllib.request.Request(server.url + path, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def call(server: Server, function: int, data: list[Any]) -> str:
    """Call a function as the page's script does, and return all that it answers."""
    session = f"crafted{function}"
    body = json.dumps({"fn_index": function, "data": data, "session_hash": session}).encode()
    status, answer = fetch(server, "gradio_api/queue/join", body)
    assert status == 200, answer
    return fetch(server, f"gradio_api/queue/data?session_hash={session}")[1]
