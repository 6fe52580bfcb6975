# SPDX-License-Identifier: Apache-2.0
"""`eval` says what a plain count says, and asks once; `best` names the best θ and whether that is noise."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.make_task import write_base_model, write_problems
from demo.problems import parse_answer
from llamafactory_tpaw.cli import main
from llamafactory_tpaw.errors import ConfigError, DataError, EnvironmentProblem
from llamafactory_tpaw.lf import facade
from llamafactory_tpaw.report import evaluate
from llamafactory_tpaw.report.best import name_best
from llamafactory_tpaw.report.evaluate import Evaluation, find_checkpoints, read_evaluations, write_evaluations
from llamafactory_tpaw.team.fingerprint import chain_fingerprints
from llamafactory_tpaw.team.manifest import read_manifest
from tests import tiny
from tests.unit.report.played import change_json, play_three
from tests.unit.team.checkpoints import save_adapter


ROOT = Path(__file__).resolve().parents[3]
TASK = str(ROOT / "demo" / "tasks" / "word_problems.yaml")
METRIC = "exact_match,none"
GIVEN = Evaluation(
    METRIC, 0.5, 0.2, 4, "0110", {METRIC: 0.5, "f1,none": 0.1}, "1", 0, None, "hf", "float32", None, "1", 2.0
)
V1 = ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande", "gsm8k")
V2 = tuple(f"leaderboard_{name}" for name in ("ifeval", "bbh", "math_hard", "gpqa", "musr", "mmlu_pro"))


def test_what_is_written_is_read_while_the_weights_are_those(tmp_path: Path) -> None:
    floats = dataclasses.replace(GIVEN, items=[0.25, 1.0], stderr=None, chat_template="ab", limit=2)
    assert read_evaluations(tmp_path) == {}
    write_evaluations(tmp_path, "f1", {"a": GIVEN, "b": floats})
    assert read_evaluations(tmp_path) == read_evaluations(tmp_path, "f1") == {"a": GIVEN, "b": floats}
    assert read_evaluations(tmp_path, "f2") == {}


@pytest.mark.parametrize("text", ["[]", '{"schema": 2, "tasks": {}}', '{"schema": 1, "tasks": {"a": {"n": 1}}}', "{"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / evaluate.EVALUATIONS).write_text(text)
    with pytest.raises(DataError, match=r"eval\.json .*(Delete it and evaluate|Repair)"):
        read_evaluations(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's problems, 10 of them, and its model after some steps on half of these."""
    root = tmp_path_factory.mktemp("demo")
    test = write_problems(root / "data" / "demo", 0)["test"]
    lines = test.read_text("utf-8").splitlines()[:10]
    test.write_text("\n".join(lines), "utf-8")
    folder = write_base_model(root / "theta", 1, hidden=96, layers=3)
    texts = [f"Human: {row['question']}<eos>\nAssistant:{row['answer']}<eos>\n" for row in map(json.loads, lines[:5])]
    tiny.teach(folder, texts, steps=60)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = SimpleNamespace(template="default", train_on_prompt=False, tool_format=None, default_system="")
    facade.get_template_and_fix_tokenizer(tokenizer, settings)
    tokenizer.save_pretrained(folder)  # with LlamaFactory's template, as a training of its leaves it
    return root


def test_eval_is_a_plain_count_and_asks_once(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The right answers of greedy decoding, one prompt at a time as LlamaFactory's template writes it."""
    monkeypatch.chdir(trained)
    rows = [json.loads(line) for line in Path("data/demo/test.jsonl").read_text("utf-8").splitlines()]
    model, tokenizer = AutoModelForCausalLM.from_pretrained("theta"), AutoTokenizer.from_pretrained("theta")
    counted = ""
    for row in rows:
        ids = tokenizer(f"Human: {row['question']}<eos>\nAssistant:", return_tensors="pt")["input_ids"]
        out = model.generate(input_ids=ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
        answer = parse_answer(tokenizer.decode(out, skip_special_tokens=True))
        counted += str(int(answer == parse_answer(row["answer"])))
    asked = ["eval", "theta", "--tasks", TASK]
    assert main(asked) == 0
    found = read_evaluations(Path("theta"))["word_problems"]
    assert 0 < counted.count("1") < len(rows) == found.n
    assert (found.items, found.value) == (counted, counted.count("1") / len(rows))
    assert (found.dtype, found.backend, found.version, found.limit) == ("float32", "hf", "1", None)
    assert found.chat_template is not None
    assert capsys.readouterr().out.startswith("theta, word_problems: exact_match,last-number 0.")
    assert main(asked) == 0
    assert capsys.readouterr().out == "theta: evaluated already on word_problems.\n"
    shutil.copytree("theta", "other")
    Path("other/chat_template.jinja").unlink()
    Path("second.yaml").write_text(f"include: {TASK}\ntask: second\n")
    Path("too_long.yaml").write_text(f"include: {TASK}\ntask: third\ngeneration_kwargs: {{max_gen_toks: 999}}\n")
    with pytest.raises(AssertionError, match="max tokens to generate"):
        ask("other", ["second.yaml", "too_long.yaml"], limit=2)
    said = ask("other", ["second.yaml", TASK], limit=2)
    assert said[0] == "other has no chat template: it is asked in plain text, as a base model is."
    assert said[1] == "other: evaluated already on second."
    kept = read_evaluations(Path("other"))
    assert [(name, each.n, each.limit, each.chat_template) for name, each in kept.items()] == [
        ("word_problems", 2, 2, None),
        ("second", 2, 2, None),
    ]
    with pytest.raises(ConfigError, match="other has no chat template"):
        ask("other", [TASK], chat_template=True)


def ask(folder: str, tasks: list[str], **how: Any) -> list[str]:
    said: list[str] = []
    evaluate.evaluate([Path(folder)], tasks, said.append, **how)
    return said


def test_what_keeps_from_evaluating_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = tmp_path / "offline.yaml"
    offline.write_text("task: offline\ndataset_path: nobody/nothing\noutput_type: generate_until\ntest_split: test\n")
    with pytest.raises(EnvironmentProblem) as caught:
        ask(".", ["none.yaml", str(offline)])
    unknown, unreached = caught.value.problems
    assert unknown.startswith("Task `none.yaml` cannot be loaded: ")
    assert re.fullmatch(
        rf"Task `{offline}` cannot be loaded: .*nothing.*, or set HF_HOME to a cache that has it\.", unreached
    )
    monkeypatch.setattr(evaluate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"not installed: pip install 'llamafactory-tpaw\[eval\]'"):
        ask(".", ["gsm8k"])


def test_lm_eval_has_the_twelve_tasks_and_our_group_their_numbers_of_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a data set: each task of the group is built from its settings alone."""
    from lm_eval import tasks as lm_eval_tasks
    from lm_eval.api.task import Task
    from lm_eval.tasks import _factory

    class Settings(Task):
        VERSION, task_name = 0, ""

        def __init__(self, config: dict[str, Any]) -> None:
            self.task_name, self.settings = config["task"], config

        def get_config(self, key: str) -> Any:
            return self.settings.get(key)

        def set_config(self, key: str, value: Any, update: bool = False) -> None:
            self.settings[key] = value

        def set_fewshot_seed(self, seed: int | None = None) -> None: ...

    managers: list[Any] = []
    own = lm_eval_tasks.TaskManager
    Settings.__abstractmethods__ = frozenset()
    monkeypatch.setattr(_factory, "ConfigurableTask", Settings)
    monkeypatch.setattr(lm_eval_tasks, "TaskManager", lambda **given: managers.append(own(**given)) or managers[-1])
    units = evaluate._load_tasks(["tpaw_leaderboard_v1"], None, None)
    assert set(managers[-1].all_tasks) >= {*V1, *V2}
    assert tuple(units) == V1
    few = {name: {task.get_config("num_fewshot") for task in evaluate._tasks_of(unit)} for name, unit in units.items()}
    assert few == dict(zip(V1, ({25}, {10}, {5}, {0}, {5}, {5}), strict=True))
    assert len({task.task_name for task in evaluate._tasks_of(units["mmlu"])}) == 57


def test_an_adapter_is_put_on_its_model_and_a_chain_is_refused(elsewhere: Path, tiny_model: Path) -> None:
    adapter = save_adapter(Path("adapter"), base_model_name_or_path=str(tiny_model))
    found, arguments = evaluate._describe(adapter, "hf")
    assert found == chain_fingerprints([tiny_model, adapter], elsewhere / "store")[-1]
    wanted = {"pretrained": str(tiny_model), "peft": "adapter", "tokenizer": str(tiny_model), "dtype": "float32"}
    assert arguments == wanted
    theta = play_three()[1]
    shutil.copytree(adapter, theta, dirs_exist_ok=True)
    (theta / "model.safetensors").unlink()
    manifest = json.loads((theta / "tpaw.json").read_text())
    manifest["result"]["below"] = [{"path": "../sft", "fingerprint": "a"}, {"path": "../x", "fingerprint": "b"}]
    change_json(theta / "tpaw.json", **manifest)
    with pytest.raises(DataError, match="is an adapter on a model with adapters"):
        evaluate._describe(theta, "hf")


def test_best_of_a_run(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thetas = play_three()
    assert find_checkpoints([Path("saves")]) == find_checkpoints(thetas[3:], lineage=True) == thetas
    assert find_checkpoints([thetas[1]]) == [thetas[1]]
    with pytest.raises(ConfigError, match="evaluated on: nothing"):
        name_best(thetas, None)
    for theta, items in zip(thetas, ("0000100000", "1000100000", "1110100000"), strict=False):
        value = items.count("1") / 10
        metrics = {METRIC: value, "exact_match_stderr,none": 0.04, "perplexity,none": value}
        new = dataclasses.replace(GIVEN, value=value, n=100, items=items * 10, metrics=metrics)
        manifest = read_manifest(theta)
        write_evaluations(theta, manifest.result["fingerprint"] if manifest else "f", {"valid": new})
    assert main(["best", str(thetas[3])]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "theta_2 (saves/iter1) is the best of 3 on valid: exact_match,none 0.4000 ± 0.0400 (100 items).",
        "theta_3 (saves/iter2) is not evaluated on valid.",
        "The next is theta_1 (saves/iter0) with 0.2000: a difference of +0.2000 on the same items, 95 % interval "
        "+0.1212 to +0.2788, more than the noise of which items were drawn.",
    ]
    low = name_best(thetas[:3], "valid", "perplexity")
    assert low[0].startswith("sft (saves/sft) is the best of 3 on valid: perplexity,none 0.1000")
    assert low[-1].endswith("the metric is not known item by item, so the difference has no interval.")
    with pytest.raises(ConfigError, match="--metric is bleu, but valid has exact_match,none, "):
        name_best(thetas[:3], "valid", "bleu")
    write_evaluations(thetas[0], "f", {"valid": dataclasses.replace(GIVEN, limit=4)})
    with pytest.raises(DataError, match="in different ways"):
        name_best(thetas[:2], "valid")
    write_evaluations(thetas[1], "of other weights", {"valid": dataclasses.replace(GIVEN, limit=4)})
    assert name_best(thetas[:2], "valid")[1] == "theta_1 (saves/iter0) is not evaluated on valid."
