# SPDX-License-Identifier: Apache-2.0
"""The forward pass on real architectures: what it does without gives what logits, padding and rows apart give."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf

from llamafactory_tpaw.data.layout import Layout, Row, lay_out, separate
from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.team import shortcuts
from llamafactory_tpaw.team.forward import disable_dropout, response_logps
from llamafactory_tpaw.team.shortcuts import Shortcuts, find_shortcuts
from tests import tiny


SIZES = tiny.SIZES | {"vocab_size": 320, "pad_token_id": 0}
MODELS: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "untied": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES, tie_word_embeddings=False)),
    "tied": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "multiplied": lambda: hf.CohereForCausalLM(hf.CohereConfig(**SIZES, logit_scale=0.3)),
    "divided": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**SIZES, logits_scaling=4.0)),
    "capped": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=5.0, attn_implementation="eager")
    ),
}
RUN = SimpleNamespace(bf16=False, fp16=False, world_size=1)
BF16 = SimpleNamespace(bf16=True, fp16=False, world_size=1)


def build(name: str) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name]()


def asked(logits: str = "blocks", layout: str = "auto") -> SimpleNamespace:
    return SimpleNamespace(tpaw_logits=logits, tpaw_layout=layout)


@pytest.fixture
def rows() -> list[Row]:
    rng = np.random.default_rng(0)
    sizes = [(5, (3, 0, 9)), (30, (4, 4)), (1, (1,))]
    draw = functools.partial(rng.integers, 0, SIZES["vocab_size"], dtype=np.int32)
    return [Row(draw(size=prompt), [draw(size=each) for each in responses]) for prompt, responses in sizes]


def evaluate(model: hf.PreTrainedModel, rows: list[Row], *, head: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums and the gradient of a weighted sum of them, over all weights."""
    model.zero_grad()
    sums = response_logps(model, lay_out(rows, pad_token_id=0), head=head).sums
    (sums * torch.linspace(-1, 1, len(sums))).sum().backward()
    grads = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return sums.detach(), torch.cat(grads)


def check_same(model: hf.PreTrainedModel, rows: list[Row], others: list[Row] | None = None) -> None:
    """Log-probs within 1e-5 of their size, gradients within 1e-5 of their norm."""
    expected, slopes = evaluate(model, separate(rows), head=False)
    sums, own = evaluate(model, others or separate(rows), head=True)
    assert bool(((sums - expected).abs() <= 1e-5 * expected.abs().clamp(min=1)).all())
    assert float((own - slopes).norm() / slopes.norm()) < 1e-5


@pytest.mark.parametrize("name", list(MODELS))
def test_log_probs_and_gradients_of_the_logits(name: str, rows: list[Row]) -> None:
    model = build(name).eval()
    assert find_shortcuts(model, RUN, asked()).head
    check_same(model, rows)
    plain = model(input_ids=torch.arange(6)[None]).logits
    assert plain.shape == (1, 6, SIZES["vocab_size"])  # the head is itself again


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shared_prompts(attention: str, rows: list[Row]) -> None:
    model = build("untied").eval()
    model.set_attn_implementation(attention)
    assert find_shortcuts(model, RUN, asked()).layout.sharing == "cheaper"
    check_same(model, rows, rows)


def test_padding_and_neighbours_change_nothing(rows: list[Row]) -> None:
    model, apart = build("untied").eval(), separate(rows)
    plain = response_logps(model, lay_out(apart, pad_token_id=0), head=True)
    padded = response_logps(model, lay_out(apart, pad_token_id=3, pad_to_multiple_of=64), head=True)
    alone = [response_logps(model, lay_out([row], pad_token_id=0), head=True).sums for row in apart]
    bound = 1e-6 * plain.sums.abs() + 1e-5
    assert plain.token_counts.tolist() == padded.token_counts.tolist() == [3, 0, 9, 4, 4, 1]
    assert bool(((plain.sums - padded.sums).abs() <= bound).all())
    assert bool(((plain.sums - torch.cat(alone)).abs() <= bound).all())


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(rows: list[Row], reentrant: bool) -> None:
    model = build("untied").train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    check_same(model, rows, rows)


def test_lora(rows: list[Row], caplog: pytest.LogCaptureFixture) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("untied"), LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    assert not find_shortcuts(model, RUN, asked()).head
    assert "the head is more than one matrix" in caplog.text
    # The scale is the inner model's; an adapter's wrapper only shows it.
    model = get_peft_model(build("multiplied"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert find_shortcuts(model, RUN, asked()).head
    check_same(model.eval(), rows)


def test_what_was_asked_for_is_done() -> None:
    model = build("untied")
    assert find_shortcuts(model, BF16, asked()) == find_shortcuts(model, RUN, asked())
    found = find_shortcuts(model, RUN, asked("full", "padded"))
    assert (found.head, found.layout.sharing) == (False, "never")
    model.get_output_embeddings().eval()
    assert find_shortcuts(model, RUN, asked(layout="shared")).layout.sharing == "always"
    assert [name for name, module in model.named_modules() if not module.training] == ["lm_head"], "as before"


def test_a_model_in_shards_is_tried_by_a_small_one_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model

    monkeypatch.setattr(shortcuts, "sharding_of", lambda training_args: "fsdp")
    run = SimpleNamespace(**vars(RUN), device=torch.device("cpu"))
    model, scores = build("untied"), []
    monkeypatch.setattr(shortcuts, "response_logps", lambda *a, **k: scores.append(a[0]) or response_logps(*a, **k))
    assert find_shortcuts(model, run, asked()) == Shortcuts(True, Layout(sharing="cheaper"))
    assert scores
    assert model not in scores
    adapted = get_peft_model(build("untied"), LoraConfig(target_modules=["q_proj", "lm_head"]))
    assert find_shortcuts(adapted, run, asked()) == Shortcuts(False, Layout(sharing="cheaper"))
    model.config.vocab_size = -1  # no such model can be made
    assert find_shortcuts(model, run, asked()) == Shortcuts()


def test_an_unknown_step_after_the_head_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """An architecture that does something else with its scores is run with its logits, and says so."""

    class Doubled(hf.Qwen2ForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            return type(out)(logits=out.logits * 2)

    torch.manual_seed(0)
    found = find_shortcuts(Doubled(hf.Qwen2Config(**SIZES)), RUN, asked())
    assert not found.head
    assert found.layout.sharing == "cheaper"
    assert "Doubled is run without log-probs in blocks" in caplog.text


@pytest.mark.parametrize(
    "model",
    [
        lambda: hf.Qwen2ForCausalLM(
            hf.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)
        ),
        lambda: hf.MptForCausalLM(hf.MptConfig(vocab_size=320, d_model=32, n_heads=2, n_layers=2, max_seq_len=64)),
    ],
    ids=["layers of two kinds", "distances in the row"],
)
def test_memories_that_a_mask_does_not_describe_are_not_shared(
    model: Callable[[], hf.PreTrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    assert find_shortcuts(model(), RUN, asked(layout="shared")).layout.sharing == "never"
    assert "`tpaw_layout: shared` has no effect" in caplog.text


class Bidirectional(hf.LlamaForCausalLM):
    """Every token sees every other one, padding included."""

    def forward(self, input_ids, **kwargs):
        seen = torch.zeros(len(input_ids), 1, *2 * input_ids.shape[1:], dtype=self.dtype)
        return super().forward(input_ids, **kwargs | {"attention_mask": seen})


class EightBits(torch.nn.Linear):
    """Rounds weights and activations by their rows, but for columns in which any token of the batch is far out."""

    def forward(self, hidden):
        far = (hidden.abs() > 1).flatten(0, -2).any(0)
        near = self.rounded(hidden.masked_fill(far, 0)) + hidden.masked_fill(~far, 0)
        return torch.nn.functional.linear(near, self.rounded(self.weight))

    @staticmethod
    def rounded(values):
        step = values.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 127
        return (values / step).round() * step


def as_trained(kind: type, weights: torch.dtype, how: str) -> torch.nn.Module:
    """A model as LlamaFactory leaves it: adapters in float32 whatever the rest is in."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = kind(hf.LlamaConfig(**SIZES | {"num_hidden_layers": 6})).to(weights).eval()
    if how == "qlora":
        model.packed = torch.nn.Parameter(torch.zeros(1, dtype=torch.int8), requires_grad=False)
        for module in model.model.modules():
            module.__class__ = EightBits if isinstance(module, torch.nn.Linear) else module.__class__
    if how != "full":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        for weight in model.parameters():
            weight.data = weight.data.float() if weight.requires_grad else weight.data
    return model


@pytest.mark.parametrize("how", ["full", "lora", "qlora"])
@pytest.mark.parametrize("autocast", [None, "bf16", "fp16"])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_no_padding_and_padding_no_rounding(weights: torch.dtype, autocast: str | None, how: str) -> None:
    run = SimpleNamespace(bf16=autocast == "bf16", fp16=autocast == "fp16", world_size=1)
    find_shortcuts(as_trained(hf.LlamaForCausalLM, weights, how), run, asked())
    with pytest.raises(ConfigError, match=r"Bidirectional|PeftModel"):
        find_shortcuts(as_trained(Bidirectional, weights, how), run, asked())


def test_training_passes_are_those_of_evaluation() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "ffn_dim": 32}
    model = hf.OPTForCausalLM(hf.OPTConfig(**sizes, word_embed_proj_dim=32, dropout=0.5, layerdrop=0.5))
    ids = torch.arange(40)[None]
    expected = model.eval()(input_ids=ids).logits
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, expected)
    disable_dropout(model)
    for _ in range(3):
        assert torch.equal(model(input_ids=ids).logits, expected)
