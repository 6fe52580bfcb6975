# SPDX-License-Identifier: Apache-2.0
"""What an untrusted dataset, checkpoint, server or reader could do: each test's first paragraph says what holds."""

from __future__ import annotations

import io
import logging
import pickle
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jinja2.exceptions import SecurityError
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

from llamafactory_tpaw.arguments.checks import read_tpaw_args
from llamafactory_tpaw.cli.output import tell_check, tell_verification
from llamafactory_tpaw.data.files import locked, read_json, write_json_atomic
from llamafactory_tpaw.data.rounds import list_opponents
from llamafactory_tpaw.data.source import find_entry, load_rows, triplet_entry
from llamafactory_tpaw.errors import UNSEEN, ConfigError, DataError, EnvironmentProblem, GenerationError
from llamafactory_tpaw.generation.partial import PartialFile
from llamafactory_tpaw.lf import facade, signals
from llamafactory_tpaw.lf.given import read_given
from llamafactory_tpaw.lf.logs import get_logger
from llamafactory_tpaw.report.collect import Method, Part, Point
from llamafactory_tpaw.report.lineage import trace
from llamafactory_tpaw.report.page import blocks_of
from llamafactory_tpaw.report.render import as_html, as_markdown
from llamafactory_tpaw.report.verify import Check, verify
from llamafactory_tpaw.runs.estimates import weight_shapes
from llamafactory_tpaw.runs.init import choose_template
from llamafactory_tpaw.runs.pruning import _prune_one
from llamafactory_tpaw.runs.study import read_study
from llamafactory_tpaw.team.checkpoint import read_header
from llamafactory_tpaw.team.fingerprint import hash_weights
from llamafactory_tpaw.team.loading import load_policy
from llamafactory_tpaw.team.members import load_tokenizer
from llamafactory_tpaw.train.trainer import TpawTrainer
from tests import encoders
from tests.board.hostile import TEXTS, Seen
from tests.campaign.ledger import ROOT
from tests.runs import Project
from tests.unit.generation import test_process
from tests.unit.generation.test_client import ROWS, answers_of, like_vllm, prepare, project, serving
from tests.unit.report import studied
from tests.unit.report.played import play_three


__all__ = ["project"]

# How data would become code: unpickled, evaluated, by a shell, or as a model's own code.
RUNS_DATA = re.compile(
    r"\b(import|from) (pickle|dill|joblib|marshal|shelve)|(?<![.\w])(eval|exec)\(|\b(torch|np|yaml)\.load\("
    r"|os\.(system|popen)\(|shell=True|allow_pickle=True|weights_only=False|trust_remote_code=True"
)
RULES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\rend"  # what a terminal would obey
CODE = """import pathlib
pathlib.Path({!r}).touch()
from transformers import PreTrainedTokenizerFast as T, Qwen2Config as C, Qwen2ForCausalLM as M, Qwen2Model as B
"""
SECRET = "geheim-987"


@dataclass
class Touch:
    """Makes a file when it is unpickled."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """A file that foreign code would make if it was run; a pickle of `Touch` does."""
    path = tmp_path / "trap"
    pickle.loads(pickle.dumps(Touch(path)))
    path.unlink()
    yield path
    assert not path.exists(), "foreign code was run"


def test_nothing_in_the_package_turns_data_into_code() -> None:
    """The package unpickles no file, evaluates no text, starts no shell, and switches no model's own code on."""
    assert len(RUNS_DATA.findall("import pickle\n eval(x); torch.load(f), f(shell=True)\nmodel.eval()")) == 4
    files = (ROOT / "llamafactory_tpaw").rglob("*.py")
    assert [file.name for file in files if RUNS_DATA.search(file.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("name", "beside", "said"),
    [
        ("pytorch_model.bin", {}, "which is not read"),
        ("adapter_model.bin", {"adapter_config.json": {}}, "which is not read"),
        ("a.bin", {"model.safetensors.index.json": {"weight_map": {"w": "a.bin"}}}, "is cut off or damaged"),
    ],
)
def test_pickled_weights_are_refused(trap: Path, tmp_path: Path, name: str, beside: Any, said: str) -> None:
    """Weights of a player that are a pickle are refused, and not opened."""
    torch.save({"w": Touch(trap)}, tmp_path / name)
    for file, content in beside.items():
        write_json_atomic(tmp_path / file, content)
    with pytest.raises(DataError, match=said):
        hash_weights(tmp_path, None)


def test_states_of_training_hold_tensors_alone(trap: Path, tmp_path: Path, tiny_model: Path) -> None:
    """A checkpoint whose optimizer, schedule or random numbers hold more than tensors is not continued from.

    transformers' Trainer reads them, in the way that ours inherits.
    """
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trainer = Trainer(model, TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to=[]))
    trainer.create_optimizer_and_scheduler(1)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": Touch(trap)}, tmp_path / name)
    for method in ("_load_optimizer_and_scheduler", "_load_rng_state"):
        assert getattr(TpawTrainer, method) is getattr(Trainer, method)
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            getattr(trainer, method)(str(tmp_path))


def test_code_in_a_models_folder_is_not_run(
    trap: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that comes with a model, named by its config, its tokenizer or its chat template, is not run."""
    folder = shutil.copytree(tiny_model, tmp_path / "theta_0")
    (folder / "own.py").write_text(CODE.format(str(trap)))
    torch.save({"w": Touch(trap)}, folder / "pytorch_model.bin")
    classes = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoModel": f"{folder}--own.B"}
    write_json_atomic(folder / "config.json", read_json(folder / "config.json") | {"auto_map": classes})
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(trap) + "') }}"
    path, classes = folder / "tokenizer_config.json", {"AutoTokenizer": [None, "own.T"]}
    write_json_atomic(path, read_json(path) | {"auto_map": classes, "chat_template": template})
    (folder / "chat_template.jinja").write_text(template)
    run = encoders.parse(Project(tmp_path, folder))
    tokenizer = load_tokenizer(run.model, "`--model`")["tokenizer"]
    for kind in (Qwen2Config, Qwen2ForCausalLM, type(tokenizer)):  # which LlamaFactory marks as their folder's own
        monkeypatch.setattr(kind, "_auto_class", None)
    assert weight_shapes("org/of_a_hub", facade.load_config(run.model))
    assert load_policy(run, tokenizer).num_parameters()
    with pytest.raises(SecurityError, match="unsafe"):
        choose_template(None, tokenizer, None)


def test_code_in_a_datasets_folder_is_not_run(trap: Path, tmp_path: Path, tiny_model: Path) -> None:
    """A dataset's own loading script is not run."""
    project = Project(tmp_path, tiny_model)
    (tmp_path / "data" / "own.py").write_text(CODE.format(str(trap)))
    project.add_entry("own", {"script_url": "own.py"})
    run = encoders.parse(project)
    with pytest.raises(DataError, match=r"`own` \(on the hub\) cannot be read"):
        load_rows(find_entry("own", str(tmp_path / "data")), run.model, run.data, run.training)


def test_yaml_makes_plain_values(trap: Path, tmp_path: Path) -> None:
    """YAML that asks for Python objects is refused in run files, in overrides and in study files."""
    made = f"!!python/object/apply:os.mkdir ['{trap}']"
    yaml.unsafe_load(made)
    trap.rmdir()
    file = tmp_path / "run.yaml"
    file.write_text(f"stage: {made}\n")
    for read in (lambda: read_given([str(file)]), lambda: read_study(str(file))):
        with pytest.raises(ConfigError, match="cannot be read: could not determine a constructor"):
            read()
    file.write_text("stage: tpaw\n")
    with pytest.raises(ConfigError, match="cannot be read: could not determine a constructor"):
        read_given([str(file), f"run_name={made}"])


def test_links_are_not_written_through(tmp_path: Path) -> None:
    """A link in a folder that was handed over leads no write, no lock and no deletion out of it."""
    (tmp_path / "outside" / "part").mkdir(parents=True)
    (kept := tmp_path / "outside" / "file").write_text("kept")
    folder = tmp_path / "saves" / "theta_1"
    folder.mkdir(parents=True)
    for name in ("tpaw.json", ".d.jsonl.lock", "d.jsonl.partial", "d.server.log", "model.safetensors"):
        (folder / name).symlink_to(kept)
    (folder / "checkpoint-4").symlink_to(kept.parent)
    write_json_atomic(folder / "tpaw.json", {})
    with pytest.raises(EnvironmentProblem, match="cannot be locked"), locked(folder / "d.jsonl", "D_0"):
        pass
    with pytest.raises(DataError, match=r"is a link\. Delete it"):
        PartialFile(folder / "d.jsonl.partial", {}, 1)
    with pytest.raises(GenerationError, match="ended with exit code 1"):
        test_process.start(folder, "end")
    _prune_one(folder, folder, set())
    assert not (folder / "model.safetensors").is_symlink()
    assert (kept.read_text(), kept.parent.joinpath("part").is_dir()) == ("kept", True)


def test_a_manifest_names_no_place_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that a `tpaw.json` names as its cache, and that is none, stays as it is when digests are verified."""
    monkeypatch.chdir(tmp_path)
    folder, named = play_three()[-1], tmp_path / "home"
    named.mkdir()
    write_json_atomic(folder / "tpaw.json", read_json(folder / "tpaw.json") | {"cache": str(named)})
    assert {check.state for check in verify(trace([folder]))} >= {"ok"}
    assert list(named.iterdir()) == []


def test_a_name_leads_to_no_file_that_is_there(tmp_path: Path, tiny_model: Path) -> None:
    """Responses are generated into no file that holds something else, wherever an entry says that they go."""
    project = Project(tmp_path, tiny_model)
    arguments = read_tpaw_args(project.settings(0))[0]
    (tmp_path / "own.txt").write_text("kept")
    project.add_entry("play_iter0", triplet_entry("play_iter0") | {"file_name": "../own.txt"})
    found = list_opponents(arguments, ["play_iter0"], str(tmp_path / "data"))
    assert (found.missing, [entry.name for entry in found.foreign]) == ([], ["play_iter0"])


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("evil", [*TEXTS.values(), RULES], ids=[*TEXTS, "terminal"])
def test_texts_are_escaped(evil: str) -> None:
    """Texts of models and labels are text in the report, as HTML and as Markdown, and nothing is fetched for them."""
    entry = {evil: {"value": 0.5, "n": 2, "items": "01"}}
    points = (Point(0, 0, evil, evil, entry), Point(5, 1, evil, evil, entry))
    part = Part(evil, points, 0, evil, evil, {evil: evil}, {evil: evil}, [dict.fromkeys(studied.EXAMPLE, evil)])
    blocks = blocks_of([Method(evil, (part,))], [evil], [evil])
    seen = Seen(as_html(evil, blocks))
    known = "html head meta title style body h1 h2 p div img details summary table tr th td"
    assert set(seen.tags) <= set(known.split())
    assert (seen.tags.count("style"), seen.tags.count("h1")) == (1, 1)
    assert evil in seen.words or evil is RULES
    text = as_markdown(evil, blocks)
    assert not re.search(r"(?<!\\)[<`$]|(?<!\\)\]\((?!\w+\.png\))", text.replace("<br>", ""))
    assert not UNSEEN.search(text + seen.text)


def test_quoted_texts_cannot_rule_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors, log lines and what commands print show control characters of quoted texts as their codes."""
    signals.report(DataError([f"`{RULES}` is wrong.", f"so is {RULES}"]))
    found = {"step_zero": None, "device": None, "memory": {}, "disk": {}, "time": {}}
    tell_check(found | {"findings": [{"level": "warning", "message": RULES}]})
    tell_verification([Check("ok", RULES, RULES, RULES)])
    stream, logger = io.StringIO(), get_logger("a test")
    logger.addHandler(handler := logging.StreamHandler(stream))
    logger.warning(RULES)
    logger.removeHandler(handler)
    text = "".join(capsys.readouterr()) + stream.getvalue()
    assert (text.count("owned"), UNSEEN.search(text)) == (7, None)


def test_what_a_server_says_holds_no_key_and_rules_no_terminal(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that repeats the key and sends control characters brings neither into errors, logs and meta files."""
    monkeypatch.setenv("TPAW_ENGINE_API_KEY", SECRET)
    said, statuses = f"{SECRET} {RULES}", iter([200])

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        fine = next(statuses, 500) == 200
        return like_vllm(body) if fine else (500, {"error": {"message": said, "type": said}})

    with serving(reply, said, owned_by="vllm") as server:
        engine, requests = prepare(project, server.url)
        reasons = [each.reason for each in answers_of(engine, requests).values()]
        assert {key for *_, key in server.seen} == {f"Bearer {SECRET}"}
    with serving(reply, id=f"other {said}") as server, pytest.raises(GenerationError) as absent:
        answers_of(*prepare(project, server.url))
    shown = f"{absent.value} {DataError(reasons)} {caplog.text}"
    assert (shown.count("owned"), UNSEEN.search(shown)) == (1 + ROWS + caplog.text.count("owned"), None)
    assert SECRET not in shown + "".join(reasons) + repr(engine.facts) + engine.version


@pytest.mark.parametrize("content", [b"[" * 200_000, b"9" * 5_000], ids=["lists", "digits"])
def test_json_that_overwhelms_a_parser_is_a_message(tmp_path: Path, content: bytes) -> None:
    """JSON nested without end, or with a number without end, is a damaged file as any other."""
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match="a is not valid JSON"):
        read_json(tmp_path / "a")
    (tmp_path / "b").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(DataError, match="b is cut off or damaged"):
        read_header(tmp_path / "b")
