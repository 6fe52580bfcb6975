# SPDX-License-Identifier: Apache-2.0
"""A tiny Qwen2 model with a byte-level tokenizer, made from nothing in a second."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
]
PLAIN_TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
CORPUS = [
    "user assistant system Human: Assistant: System: ipython You are a helpful assistant.",
    "Natalia sold 48 clips in April and then she sold half as many in May. How many altogether?",
    "She earns $12 an hour. She worked 50 minutes, so she earned 12 x 50 / 60 = 10. #### 10",
]


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
}


def build_tokenizer(bos: str | None = None) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of about 400 tokens that can write any text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    backend.add_tokens(PLAIN_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", bos_token=bos
    )


def save_model(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, bos: str | None = None, **config: object
) -> Path:
    """Save a random model and its tokenizer to `folder`; `config` overrides fields of `Qwen2Config`."""
    tokenizer = build_tokenizer(bos)
    torch.manual_seed(seed)
    settings = SIZES | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": False,
        "attention_dropout": 0.1,
    }
    model = Qwen2ForCausalLM(Qwen2Config(**settings | config)).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teach(folder: Path, texts: list[str], steps: int = 150) -> Path:
    """Train a saved model on texts until it is fairly sure of them, as an SFT model is of its data."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = Qwen2ForCausalLM.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(texts), (16,), generator=generator)
        batch = tokenizer([texts[index] for index in chosen], padding=True, padding_side="right", return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder
