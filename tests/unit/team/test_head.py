# SPDX-License-Identifier: Apache-2.0
"""The replaced head on real architectures: tied, scaled, capped and adapted heads give what their logits give."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llamafactory_tpaw.data.layout import Row, lay_out, separate
from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.objectives import head as blocks
from llamafactory_tpaw.team import forward, shortcuts
from llamafactory_tpaw.team.forward import response_logps
from llamafactory_tpaw.team.shortcuts import find_shortcuts, layout_costs


SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "untied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False)),
    "tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
    "capped": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=5.0, attn_implementation="eager")
    ),
}
RUN = SimpleNamespace(bf16=False, fp16=False, world_size=1)
BF16 = SimpleNamespace(bf16=True, fp16=False, world_size=1)


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name]()


def asked(logits: str = "blocks", layout: str = "auto") -> SimpleNamespace:
    return SimpleNamespace(tpaw_logits=logits, tpaw_layout=layout)


@pytest.fixture
def rows() -> list[Row]:
    rng = np.random.default_rng(0)
    sizes = [(5, (3, 0, 9)), (30, (4, 4)), (1, (1,))]
    return [Row(draw(rng, prompt), [draw(rng, response) for response in responses]) for prompt, responses in sizes]


def draw(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.integers(0, SIZES["vocab_size"], size=size, dtype=np.int32)


def evaluate(
    model: PreTrainedModel, rows: list[Row], *, head: bool, bf16: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums and the gradient of a weighted sum of them, over all weights."""
    model.zero_grad()
    context = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)
    sums = response_logps(model, lay_out(rows, pad_token_id=0), context, head=head).sums
    (sums * torch.linspace(-1, 1, len(sums))).sum().backward()
    grads = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return sums.detach(), torch.cat(grads)


def check_same(model: PreTrainedModel, rows: list[Row], others: list[Row] | None = None) -> None:
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
    assert find_shortcuts(model, RUN, asked()).costs.sharing == "cheaper"
    check_same(model, rows, rows)


def test_a_mask_alone_says_who_sees_whom(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on accelerators, and where something on the way to the attention drops what the mask carries."""
    monkeypatch.setattr(forward, "attends_by_parts", lambda device, attention: False)
    check_same(build("untied").eval(), rows, rows)


def test_shared_rows_are_attended_part_by_part(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    model, widths = build("untied").eval(), set()
    find_shortcuts(model, RUN, asked())
    plain = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, *rest, **named):
        widths.add((query.shape[2], key.shape[2]))
        return plain(query, key, *rest, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    response_logps(model, lay_out(rows[:1], pad_token_id=0), head=True)
    assert widths == {(5, 5), (3, 5 + 3), (9, 5 + 9)}


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


def test_lora_on_the_head(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model

    monkeypatch.setitem(blocks.BLOCK_SCORES, "cpu", 4 * SIZES["vocab_size"])  # chunks of 4 tokens
    model = get_peft_model(build("untied"), LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    assert find_shortcuts(model, RUN, asked()).head
    check_same(model.eval(), rows)


def test_lora_beside_a_scaled_head(rows: list[Row]) -> None:
    """The scale is the inner model's; an adapter's wrapper only shows it."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("multiplied"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert find_shortcuts(model, RUN, asked()).head
    check_same(model.eval(), rows)


def test_a_trial_leaves_every_module_in_its_mode() -> None:
    model = build("untied").train()
    model.get_output_embeddings().eval()
    find_shortcuts(model, RUN, asked())
    assert [name for name, module in model.named_modules() if not module.training] == ["lm_head"]


def test_bf16_is_no_further_from_float32_than_plain_logits_are() -> None:
    """Rounding falls one way or the other in a single batch, so it is the mean over several that is compared."""
    further = []
    for seed in range(16):
        torch.manual_seed(seed)
        rng, model = np.random.default_rng(seed), MODELS["tied"]().eval()
        rows = [Row(draw(rng, prompt), [draw(rng, size) for size in (20, 0, 30)]) for prompt in (1, 8, 30)]
        find_shortcuts(model, BF16, asked())
        truth = evaluate(model, separate(rows), head=False)
        naive = evaluate(model, separate(rows), head=False, bf16=True)
        ours = evaluate(model, rows, head=True, bf16=True)
        errors = [
            [float((found - true).norm()) for found, true in zip(both, truth, strict=True)] for both in (ours, naive)
        ]
        further.append(np.log(errors[0]) - np.log(errors[1]))
    sums, gradients = np.exp(np.mean(further, axis=0))
    assert 0.5 < sums < 1.1
    assert 0.5 < gradients < 1.05


def test_shortcuts_do_not_depend_on_autocast() -> None:
    model = build("tied").eval()
    assert find_shortcuts(model, BF16, asked()) == find_shortcuts(model, RUN, asked())


def test_what_was_asked_for_is_done() -> None:
    model = build("untied")
    found = find_shortcuts(model, RUN, asked("full", "padded"))
    assert (found.head, found.costs.sharing) == (False, "never")
    assert find_shortcuts(model, RUN, asked(layout="shared")).costs.sharing == "always"
    assert model.training


def test_an_unknown_step_after_the_head_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """An architecture that does something else with its scores is run with its logits, and says so."""

    class Doubled(Qwen2ForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            return type(out)(logits=out.logits * 2)

    torch.manual_seed(0)
    found = find_shortcuts(Doubled(Qwen2Config(**SIZES)), RUN, asked())
    assert not found.head
    assert found.costs.sharing == "cheaper"
    assert "Doubled is run without log-probs in blocks" in caplog.text


def test_where_a_trial_failed_can_be_read(caplog: pytest.LogCaptureFixture) -> None:
    """The warning is for users; what a maintainer needs is in the debug log."""

    class Headless(Qwen2ForCausalLM):
        def get_output_embeddings(self):
            return None

    with caplog.at_level(logging.DEBUG, logger=shortcuts.logger.name):
        assert not find_shortcuts(Headless(Qwen2Config(**SIZES)), RUN, asked()).head
    assert "Headless is run without log-probs in blocks" in caplog.text
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    "model",
    [
        lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)),
        lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)),
        lambda: FalconH1ForCausalLM(
            FalconH1Config(**SIZES, mamba_d_ssm=32, mamba_n_heads=2, mamba_d_head=16, mamba_d_state=8)
        ),
        lambda: GPTNeoForCausalLM(
            GPTNeoConfig(
                vocab_size=320, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]
            )
        ),
    ],
    ids=["sliding window", "layers of two kinds", "state space", "local layers"],
)
def test_memories_that_a_mask_does_not_describe_are_not_shared(
    model: Callable[[], PreTrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    assert find_shortcuts(model(), RUN, asked(layout="shared")).costs.sharing == "never"
    assert "`tpaw_layout: shared` has no effect" in caplog.text


def test_what_autocast_would_cover_is_noticed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distances between columns, which this architecture adds to its scores, are not those between positions."""
    monkeypatch.setattr(shortcuts, "_sees_everything", lambda model: True)
    torch.manual_seed(0)
    model = MptForCausalLM(MptConfig(vocab_size=320, d_model=32, n_heads=2, n_layers=2))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3) if weight.ndim > 1 else None
    assert find_shortcuts(model, BF16, asked()).costs.sharing == "never"
    assert "MptForCausalLM is run without shared prompts" in caplog.text


def test_distances_in_a_row_are_not_shared() -> None:
    """ALiBi lowers attention by how far tokens stand apart, whatever their positions are said to be."""
    config = MptConfig(d_model=32, n_heads=2, n_layers=2, vocab_size=SIZES["vocab_size"], max_seq_len=64)
    torch.manual_seed(0)
    model = MptForCausalLM(config).to(torch.bfloat16)
    assert find_shortcuts(model, RUN, asked(layout="shared")).costs.sharing == "never"


def test_a_model_that_sees_its_padding_is_refused() -> None:
    class Seeing(Qwen2ForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            return type(out)(logits=out.logits * kwargs["input_ids"].shape[1])

    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=r"Seeing gives a response -\d.* by itself and -\d.* with padding behind it"):
        find_shortcuts(Seeing(Qwen2Config(**SIZES)), RUN, asked())


def test_costs_count_layers_and_not_the_vocabulary() -> None:
    small = LlamaForCausalLM(LlamaConfig(**SIZES))
    large = LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": 640}))
    assert layout_costs(small) == layout_costs(large)
    layer = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64
    assert (layout_costs(small).token, layout_costs(small).pair) == (2 * layer, 2 * 2 * 32)
