# SPDX-License-Identifier: Apache-2.0
"""Two checkpoints are loaded by LlamaFactory's chat model, asked the same, and leave no memory behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llamafactory_tpaw.board import compare
from llamafactory_tpaw.board.compare import Checkpoint, Pair, Sampling, chat_arguments
from llamafactory_tpaw.errors import ConfigError, EnvironmentProblem
from tests import tiny


GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=8)
QUESTION = [{"role": "user", "content": "How many?"}]
RUN = {"template": "qwen", "top_k": 0}


@pytest.fixture(scope="module")
def checkpoints(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    other = tiny.save_model(tmp_path_factory.mktemp("other") / "theta_1", seed=1)
    return [Checkpoint("θ_0", str(tiny_model)), Checkpoint("θ_1", str(other))]


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.unload()


def load(pair: Pair, checkpoints: list[Checkpoint], **settings: Any) -> list[str]:
    arguments = [chat_arguments({**RUN, **settings}, checkpoint, "qwen", False) for checkpoint in checkpoints]
    return list(pair.load(checkpoints, arguments))


def answers(pair: Pair, sampling: Sampling = GREEDY) -> list[str]:
    return list(pair.ask([QUESTION, QUESTION], "", sampling))[-1]


def test_both_answer_the_same_question(pair: Pair, checkpoints: list[Checkpoint]) -> None:
    assert load(pair, checkpoints) == ["θ_0", "θ_1"]
    assert pair.names == ("θ_0", "θ_1")
    first, second = answers(pair)
    assert first
    assert second
    assert first != second
    assert answers(pair) == [first, second]
    assert not pair.busy


def test_the_template_and_checkpoint_decide_the_prompt(pair: Pair, checkpoints: list[Checkpoint]) -> None:
    load(pair, checkpoints)
    seen = []
    for model in pair._models.values():
        generate = model.engine.model.generate
        model.engine.model.generate = (
            lambda *args, inputs, generate=generate, tokenizer=model.engine.tokenizer, **rest: (
                seen.append(tokenizer.decode(inputs[0])) or generate(*args, inputs=inputs, **rest)
            )
        )
    list(pair.ask([QUESTION, QUESTION], "Be brief.", GREEDY))
    assert (
        seen
        == ["<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"]
        * 2
    )


def test_unloading_frees_both(pair: Pair, checkpoints: list[Checkpoint]) -> None:
    load(pair, checkpoints)
    answers(pair)
    models = [weakref.ref(model.engine.model) for model in pair._models.values()]
    loops = [model._thread for model in pair._models.values()]
    pair.unload()
    gc.collect()
    assert [model() for model in models] == [None, None]
    for thread in loops:
        thread.join(30)
        assert not thread.is_alive()
    assert not pair.loaded
    with pytest.raises(ConfigError, match="Load two first"):
        answers(pair)
    load(pair, checkpoints[::-1])
    assert pair.names == ("θ_1", "θ_0")


def test_the_same_checkpoint_twice_is_loaded_once(pair: Pair, checkpoints: list[Checkpoint]) -> None:
    assert load(pair, [checkpoints[0]] * 2) == ["θ_0"]
    first, second = answers(pair)
    assert first == second


def test_loading_twice_is_refused(pair: Pair, checkpoints: list[Checkpoint]) -> None:
    load(pair, checkpoints)
    with pytest.raises(ConfigError, match="θ_0 and θ_1 are loaded"):
        load(pair, checkpoints)
    assert answers(pair)


def test_one_that_cannot_be_loaded_leaves_none(pair: Pair, checkpoints: list[Checkpoint], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EnvironmentProblem, match=r"θ_9 .*empty.* cannot be loaded"):
        load(pair, [checkpoints[0], Checkpoint("θ_9", str(tmp_path / "empty"))])
    assert not pair.loaded
    assert not pair._models
    assert not pair.busy


def test_a_failure_while_generating_is_told(pair: Pair, checkpoints: list[Checkpoint]) -> None:
    """LlamaFactory would wait for ever for a stream that nothing ends."""
    load(pair, checkpoints)
    model = pair._models[checkpoints[1].path].engine.model
    model.forward = lambda **_: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(EnvironmentProblem, match="θ_1 cannot answer: out of memory"):
        answers(pair)
    del model.forward
    assert all(answers(pair))


def test_leaving_early_ends_the_answers(pair: Pair, checkpoints: list[Checkpoint]) -> None:
    load(pair, checkpoints)
    steps, most = [], 1900
    for model in pair._models.values():
        # An end of turn never comes: only being told so ends it before the last token.
        model.engine.template.get_stop_token_ids = lambda _: [10**6]
        model.engine.model.register_forward_hook(lambda *_: steps.append(1))
    stream = pair.ask([QUESTION, QUESTION], "", Sampling(temperature=0.0, top_p=1.0, max_new_tokens=most))
    next(stream)
    assert pair.busy
    with pytest.raises(ConfigError, match="still being answered"):
        answers(pair)
    stream.close()
    for thread in pair._threads:
        thread.join(120)
    assert 0 < len(steps) < most
    assert not pair.busy
    assert all(answers(pair, GREEDY))


def test_unloading_waits_for_who_loads(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being loaded is not left behind."""
    opening, go_on = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, _: dict[str, Any]) -> None:
            opening.set()
            go_on.wait(60)
            raise RuntimeError("stopped")

    monkeypatch.setattr(compare.facade, "ChatModel", Slow, raising=False)
    failed = []

    def try_to_load() -> None:
        with pytest.raises(EnvironmentProblem) as caught:
            load(pair, [Checkpoint("θ_0", "a"), Checkpoint("θ_1", "b")])
        failed.append(str(caught.value))

    thread = threading.Thread(target=try_to_load)
    thread.start()
    assert opening.wait(60)
    assert pair.busy
    with pytest.raises(ConfigError, match="being loaded or unloaded"):
        load(pair, [Checkpoint("θ_0", "a")])
    go_on.set()
    thread.join(60)
    assert failed == ["θ_0 (a) cannot be loaded: stopped"]


def test_an_adapter_is_loaded_on_its_base(pair: Pair, tiny_model: Path, tmp_path: Path) -> None:
    """Written with its base, or alone as the folder that an iteration wrote: then the run says the base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    model.save_pretrained(tmp_path / "play_iter0")
    alone = Checkpoint("θ_1", str(tmp_path / "play_iter0"))
    written_out = Checkpoint("θ_1", f"{tiny_model}+{alone.path}")
    load(pair, [alone, Checkpoint("θ_0", str(tiny_model))], model_name_or_path=str(tiny_model))
    adapted, plain = answers(pair)
    assert adapted != plain
    pair.unload()
    load(pair, [written_out, Checkpoint("θ_0", str(tiny_model))])
    assert answers(pair) == [adapted, plain]


def test_what_the_chat_model_is_opened_with() -> None:
    settings = {"default_system": "", "learning_rate": 1.0, "tpaw_eta": 6.0, "rope_scaling": None, "top_k": 0}
    plain = chat_arguments(settings, Checkpoint("θ_1", "saves/one"), "qwen", False)
    assert plain == {
        "default_system": "",
        "top_k": 0,
        "model_name_or_path": "saves/one",
        "finetuning_type": "full",
        "template": "qwen",
        "infer_backend": "huggingface",
        "trust_remote_code": False,
    }
    adapted = chat_arguments({}, Checkpoint("θ_2", "base+saves/a+saves/b"), "qwen", True)
    assert adapted["model_name_or_path"] == "base"
    assert adapted["adapter_name_or_path"] == "saves/a,saves/b"
    assert adapted["finetuning_type"] == "lora"
    assert adapted["trust_remote_code"] is True
    # Only the user's own tick counts, not a word that a run file has.
    assert (
        chat_arguments({"trust_remote_code": True}, Checkpoint("θ_0", "a"), "qwen", "yes")["trust_remote_code"]
        is False
    )
