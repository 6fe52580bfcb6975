# SPDX-License-Identifier: Apache-2.0
"""Makes what contenders train with: checkpoints θ_0, θ_1, … of random weights, a tokenizer, and rounds of triplets.

A process of its own: `python -m benchmarks.material FILE`, where the file holds a `Workload` as JSON. Words of the
tokenizer are single tokens, so that texts have the lengths that are asked for and every contender reads the same ids.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from .ours import stage_settings
from .workload import SIZES, Data, Job, Workload


SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PADDING, _, END = SPECIAL_TOKENS
UNKNOWN = "<unk>"
ROLES = ("system", "user", "assistant")
SYSTEM = "system"  # LlamaFactory's template would add a longer one
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STEP = 5e-3  # standard deviation of what one θ differs by from the one before


def make_tokenizer(vocabulary: int) -> Any:
    """Make a tokenizer that reads every word as one token, with Qwen's special tokens and chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [UNKNOWN, *ROLES]
    words += [f"w{index}" for index in range(vocabulary - len(words) - len(SPECIAL_TOKENS))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PADDING,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
    )


def make_models(workload: Workload) -> None:
    """Save θ_0, and each next θ as the one before with a little noise; all with the tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.set_num_threads(workload.threads)
    tokenizer = make_tokenizer(workload.vocabulary)
    size = SIZES[workload.size]
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=workload.vocabulary,
        hidden_size=size["hidden"],
        intermediate_size=size["intermediate"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv_heads"],
        max_position_embeddings=4096,
        tie_word_embeddings=workload.tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    dtype = torch.float32 if workload.precision == "fp32" else torch.bfloat16
    model = Qwen2ForCausalLM(config).to(device=workload.device, dtype=dtype)
    for number in range(workload.thetas):
        if number:
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(torch.randn_like(weight), alpha=STEP)
        model.save_pretrained(workload.theta(number))
        tokenizer.save_pretrained(workload.theta(number))


def write_manifests(workload: Workload) -> list[str]:
    """Give each θ after θ_0 the `tpaw.json` of the iteration that would have made it; return all fingerprints."""
    from llamafactory_tpaw.team.fingerprint import fingerprint_checkpoint
    from llamafactory_tpaw.team.manifest import Manifest, write_manifest

    store = Path(workload.folder) / "cache"
    prints = [fingerprint_checkpoint(workload.theta(number), store) for number in range(workload.thetas)]
    members = [
        {"name": f"theta_{number}", "path": str(workload.theta(number)), "fingerprint": prints[number]}
        for number in range(workload.thetas)
    ]
    for number in range(1, workload.thetas):
        manifest = Manifest(
            iteration=number - 1,
            status="finished",
            objective="tpaw",
            policy=members[number - 1],
            players=members[:number],
            triplets=[],
            tokenizer="",
            template={"name": "qwen", "digest": ""},
            settings={},
            result={"fingerprint": prints[number]},
        )
        write_manifest(workload.theta(number), manifest)
    return prints


def write_rounds(workload: Workload, data: Data, encoder: Any, fingerprints: list[str]) -> None:
    """Write the triplet files of a set, each with its meta file."""
    from llamafactory_tpaw.data.encoding import digest_of_ids, prompt_id
    from llamafactory_tpaw.data.files import sha256_hex
    from llamafactory_tpaw.data.triplets import TripletMeta, TripletRow, write_meta

    rng = random.Random(f"{data}")
    writer = _Writer(workload.vocabulary, data, encoder)
    seen: dict[str, int] = {}
    prompts = []
    for _ in range(data.prompts):
        messages, target = [{"role": "user", "content": writer.prompt(rng)}], writer.response(rng)
        prompt_ids, target_ids = encoder.encode(messages, target, SYSTEM)
        prompts.append((prompt_id(prompt_ids, target_ids, seen), messages, target))
    for iteration in range(data.rounds):
        lines = []
        for identity, messages, target in prompts:
            generated = writer.response(rng)["content"]
            ids = [*encoder.tokenizer.encode(generated, add_special_tokens=False), encoder.tokenizer.eos_token_id]
            row = TripletRow(
                identity, iteration, messages, SYSTEM, "", target, generated, finish_reason="stop", generated_ids=ids
            )
            lines.append(row.to_json() + "\n")
        path = workload.triplet_file(data, iteration)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = "".join(lines).encode()
        path.write_bytes(content)
        meta = TripletMeta(
            iteration=iteration,
            generator=fingerprints[iteration],
            generator_path=str(workload.theta(iteration)),
            tokenizer=encoder.tokenizer_digest,
            template=encoder.template_digest,
            prompts_entry="",
            prompts_digest=digest_of_ids(identity for identity, _, _ in prompts),
            selection={},
            sampling={},
            cutoff_len=data.cutoff_len,
            engine={},
            rows=data.prompts,
            rows_digest=sha256_hex(content),
        )
        write_meta(path, meta)


class _Writer:
    """Writes random texts of known numbers of tokens."""

    def __init__(self, vocabulary: int, data: Data, encoder: Any) -> None:
        self.words = vocabulary - len(SPECIAL_TOKENS) - len(ROLES) - 1
        self.data = data
        frame = encoder.encode([{"role": "user", "content": ""}], {"role": "assistant", "content": ""}, SYSTEM)[0]
        self.prompt_words = data.prompt_tokens - len(frame)
        if self.prompt_words < 1:
            raise ValueError(f"A prompt needs more than {len(frame)} tokens, got {data.prompt_tokens}.")

    def prompt(self, rng: random.Random) -> str:
        """Write the user's words."""
        return self._text(rng, self.prompt_words)

    def response(self, rng: random.Random) -> dict[str, str]:
        """Write a response that ends its turn."""
        longest = self.data.response_tokens
        tokens = rng.randint(max(round(longest * (1 - self.data.spread)), 2), longest)
        return {"role": "assistant", "content": self._text(rng, tokens - 1)}

    def _text(self, rng: random.Random, count: int) -> str:
        return " ".join(f"w{rng.randrange(self.words)}" for _ in range(count))


def make_material(workload: Workload) -> None:
    """Make everything a workload needs, in its folder."""
    from llamafactory_tpaw.arguments.parsed import parse_single_process
    from llamafactory_tpaw.data.source import triplet_entry
    from llamafactory_tpaw.team.members import load_encoder

    make_models(workload)
    fingerprints = write_manifests(workload)
    names = [data.entry(number) for data in workload.datasets for number in range(data.rounds)]
    workload.data_dir.mkdir(parents=True, exist_ok=True)
    (workload.data_dir / "dataset_info.json").write_text(json.dumps({name: triplet_entry(name) for name in names}))
    settings = stage_settings(workload, Job(workload.datasets[0]), Path(workload.folder) / "unused")
    encoder = load_encoder(parse_single_process(settings))[2]
    for data in workload.datasets:
        write_rounds(workload, data, encoder, fingerprints)


if __name__ == "__main__":
    make_material(Workload.from_json(Path(sys.argv[1]).read_text()))
