# SPDX-License-Identifier: Apache-2.0
"""What a run's settings must satisfy before anything is read: all problems at once, from the keys alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..lf.given import is_on
from .fields import FIELDS, Range, TpawArguments, parse_value
from .start import Start


OTHER_TRAINER = "it trains with transformers' Trainer only"
# Keys of LlamaFactory that stage `tpaw` does not go with, the values that are harmless, and why.
INCOMPATIBLE: dict[str, tuple[tuple[Any, ...], str]] = {
    "streaming": ((False,), "triplets are matched with cached log-probs, so all rows are needed"),
    **dict.fromkeys(("packing", "neat_packing"), ((False,), "a triplet's responses are scored one by one")),
    "tokenized_path": ((), "triplets are tokenized from their own files"),
    "mix_strategy": (("concat",), "every round is used whole"),
    **dict.fromkeys(("mask_history", "train_on_prompt"), ((False,), "only the response is scored")),
    "adapter_folder": ((), "each adapter is named by its own folder"),
    "pissa_init": ((False,), "it changes the model that policy and players share"),
    "use_kt": ((False,), "it replaces the forward pass that players and policy share"),
    "use_unsloth": ((False,), "it replaces the forward pass that players and policy share"),
    "rope_scaling": (("linear", "yarn", "llama3"), "`dynamic` makes log-probs depend on the longest row of a batch"),
    "fp8": ((False,), "players and policy are run in float32, bf16 or fp16"),
    "moe_aux_loss_coef": ((0, 0.0), "the loss has no term for routers"),
    "mixture_of_depths": ((), "it changes the model that players and policy share"),
    **dict.fromkeys(("use_mca", "use_megatron_bridge", "use_hyper_parallel"), ((False,), OTHER_TRAINER)),
    "use_badam": ((False,), "its hooks on the Trainer are not there"),
    "num_beams": ((1,), "responses are sampled one by one"),
    "predict_with_generate": ((False,), "generation is part of the stage itself"),
    "do_predict": ((False,), "it trains and evaluates on triplets; predict in the `sft` stage"),
    "eval_on_each_dataset": ((False,), "all sets of `eval_dataset` are evaluated as one"),
    "neftune_noise_alpha": ((), "players are scored without noise, so the policy must be too"),
    "label_smoothing_factor": ((0, 0.0), "the loss is over pairs of responses"),
    "pref_beta": ((), "the reward scale is `tpaw_reward_scale` here"),
    "pref_loss": ((), "the loss is chosen by `tpaw_objective` here"),
    "pref_ftx": ((0, 0.0), "the loss has no SFT term"),
    "dpo_label_smoothing": ((0, 0.0), "the loss has no label smoothing"),
    "ref_model": ((), "the reference models are `tpaw_players` here"),
}
# What LlamaFactory's numbers may be here.
NUMBERS = {
    **dict.fromkeys(("temperature", "top_k", "seed"), Range(0)),
    **dict.fromkeys(("cutoff_len", "gradient_accumulation_steps", "max_new_tokens"), Range(1)),
    "per_device_train_batch_size": Range(1),
    "repetition_penalty": Range(0, exclusive=True),
    "top_p": Range(0, exclusive=True, maximum=1),
}
# What the run file's other keys settle, or what holds for each server of a run; `tpaw_vllm_args` would win. Every user
# of the machine would see a key there: each run makes its own, and a hub's is in `HF_TOKEN`.
OWN_OPTIONS = (
    "--model --tokenizer --revision --served-model-name --dtype --max-model-len --seed --host --port --api-key "
    "--uds --root-path --ssl-keyfile --ssl-certfile --generation-config --override-generation-config "
    "--enable-prefix-caching --chat-template --enable-lora --lora-modules --max-lora-rank --trust-remote-code "
    "--hf-token"
).split()
# Where a server's key is read from, the first one that is set; no key of a run file takes it.
KEY_VARIABLES = ("TPAW_ENGINE_API_KEY", "OPENAI_API_KEY")
SECRET_ADVICE = f"Put the key into the environment variable `{KEY_VARIABLES[0]}`, and nowhere else."
# http(s)://host:port/path and nothing else; a host may be an IPv6 address in brackets.
ADDRESS = re.compile(r"https?://(\[[\da-fA-F:.]+\]|[^][\s/:@?#;,]+)(:\d+)?(/[^\s:@?#;,]*)?")
FILTER = re.compile(r"equal|truncated|shorter:[1-9]\d*")
REQUIRED_KEYS = ("model_name_or_path", "template", "dataset", "output_dir")


def refuse_backends() -> None:
    """Refuse trainers that do not know the stage; before LlamaFactory is loaded, which some switches prevent."""
    for name in filter(is_on, ("USE_MCA", "USE_MEGATRON_BRIDGE", "USE_V1")):
        raise ConfigError(f"{name} is set, but stage `tpaw` trains with transformers' Trainer only. Unset {name}.")


def read_tpaw_args(given: Mapping[str, Any]) -> tuple[TpawArguments, list[str]]:
    """Read a run's `tpaw_*` keys: with defaults where a value is wrong, and one message for each of these."""
    parsed = {name: parse_value(name, given[name]) for name in FIELDS if name in given}
    values = {name: value for name, (value, problem) in parsed.items() if not problem}
    return TpawArguments(**values), [problem for _, problem in parsed.values() if problem]


def setting_problems(given: Mapping[str, Any]) -> list[str]:
    """Check LlamaFactory's own keys against what stage `tpaw` can do; return one message a problem."""
    problems = [
        f"`{key}` is missing. Give it, as the files in yaml/ do." for key in REQUIRED_KEYS if not given.get(key)
    ]
    for key, (harmless, reason) in INCOMPATIBLE.items():
        value = given.get(key)
        if value is not None and value not in harmless:
            problems.append(f"`{key}: {value}` does not go with stage `tpaw`: {reason}. Remove it.")
    for key, allowed in NUMBERS.items():
        value = given.get(key)
        if isinstance(value, int | float) and not allowed.holds(value):
            problems.append(f"`{key}` is {value}, but must be {allowed}. Correct the key.")
    problems += [
        f"`tpaw_opponent_filter` has `{word}`, but knows `equal`, `truncated` and `shorter:8`, with any number. "
        "Correct the key."
        for word in parse_value("tpaw_opponent_filter", given.get("tpaw_opponent_filter"))[0] or []
        if not FILTER.fullmatch(word)
    ]
    problems += _method_problems(given)
    if given.get("tpaw_prompts"):
        problems += _sampling_problems(given)
    return problems + _weight_problems(given) + _engine_problems(given)


def _method_problems(given: Mapping[str, Any]) -> list[str]:
    """Check which weights are trained, and the adapters from which that starts."""
    start = Start.of(given)
    if start.finetuning_type not in ("full", "freeze", "lora"):
        return [
            f"`finetuning_type` is {start.finetuning_type}, but stage `tpaw` trains `full`, `freeze` or `lora`. "
            "Choose one."
        ]
    adapters, bits = ",".join(start.adapters), given.get("quantization_bit")
    problems = []
    for key, value in (("adapter_name_or_path", adapters), ("quantization_bit", bits)):
        if value and not start.is_lora:
            problems.append(
                f"`{key}: {value}` does not go with `finetuning_type: {start.finetuning_type}`, which trains the "
                "model's own weights. Set `finetuning_type: lora`, or name a model with its adapters merged into it "
                "(`llamafactory-cli export`)."
            )
    if bits and adapters and start.is_lora and (start.new_adapter or len(start.adapters) > 1):
        problems.append(
            f"`quantization_bit: {bits}` goes with one adapter that is trained on, because no adapter can be merged "
            f"into a quantized model, but here {adapters} would be. Leave out `create_new_adapter`, or merge all but "
            "the last adapter into the model before (`llamafactory-cli export`)."
        )
    return problems


def _sampling_problems(given: Mapping[str, Any]) -> list[str]:
    """Check that the keys of sampling are given, and that several samples of a prompt can differ."""
    problems = []
    absent = [f"`{key}`" for key in ("temperature", "top_p", "top_k") if given.get(key) is None]
    if absent:
        problems.append(
            f"{', '.join(absent)} must be given where `tpaw_prompts` is set: LlamaFactory's defaults (0.95, 0.7, 50) "
            "would apply unseen. TPAW samples with `temperature: 1.0`, `top_p: 1.0`, `top_k: 0`."
        )
    samples, _ = parse_value("tpaw_samples_per_prompt", given.get("tpaw_samples_per_prompt", 1))
    is_greedy = str(given.get("do_sample", True)).lower() == "false" or given.get("temperature") == 0
    if is_greedy and isinstance(samples, int) and samples > 1:
        problems.append(
            f"`tpaw_samples_per_prompt` is {samples}, but without sampling (`do_sample: false` or `temperature: 0`) "
            "all responses to a prompt are the same. Set it to 1, or sample with a temperature above 0."
        )
    return problems


def _weight_problems(given: Mapping[str, Any]) -> list[str]:
    """Check what the weights of prompts need."""
    args, what, problems = read_tpaw_args(given)[0], "`tpaw_prompt_weight: entropy`", []
    if args.tpaw_prompt_weight != "entropy":
        return []
    try:
        re.compile(args.tpaw_answer_pattern or "")
    except re.error as error:
        problems.append(f"`tpaw_answer_pattern` is no regular expression: {error}. Correct it.")
    if not args.tpaw_answer_pattern:
        problems.append(f"{what} needs `tpaw_answer_pattern`, a regular expression. Give one, such as `'#### *(.+)'`.")
    if args.tpaw_prompts and args.tpaw_samples_per_prompt == 1:
        problems.append(f"{what} compares several responses to a prompt. Set `tpaw_samples_per_prompt` to 2 or more.")
    if args.tpaw_objective == "iris":
        problems.append(f"{what} does not go with `tpaw_objective: iris`, which weighs triplets itself. Remove one.")
    return problems


def _engine_problems(given: Mapping[str, Any]) -> list[str]:
    """Check the keys of engines against one another, without repeating a secret that is in one of them."""
    engine = str(given.get("tpaw_engine") or "hf")
    problems = []
    if given.get("tpaw_engine_url") and not given.get("tpaw_engine"):
        problems.append(
            "`tpaw_engine_url` is given, but no `tpaw_engine`, so `hf` would generate. Set `openai` or `hf`."
        )
    urls = parse_value("tpaw_engine_url", given.get("tpaw_engine_url"))[0] or []
    if engine == "openai" and given.get("tpaw_prompts") and not urls:
        problems.append(
            "`tpaw_engine: openai` needs `tpaw_engine_url`, the address of a server that serves theta_t. Give one, "
            "such as `http://localhost:8000/v1`."
        )
    problems += [
        "`tpaw_engine_url` must list addresses such as `http://localhost:8000/v1`, with commas between them and "
        f"without user, password, query or fragment, which logs would show; address {number} is none. {SECRET_ADVICE}"
        for number, url in enumerate(urls, start=1)
        if (found := ADDRESS.fullmatch(url)) is None or int((found[2] or ":1")[1:]) not in range(1, 2**16)
    ]
    try:
        words = shlex.split(str(given.get("tpaw_vllm_args") or ""))
    except ValueError as error:
        return [*problems, f"`tpaw_vllm_args` cannot be read as a shell would ({error}). Correct the quotes."]
    options = [word.partition("=")[0].replace("_", "-") for word in words]
    if own := [option for option in options if option.replace("--no-", "--") in OWN_OPTIONS]:
        problems.append(f"`tpaw_vllm_args` has {', '.join(own)}, which the run settles by itself. Remove it there.")
    return problems + [
        f"`{key}: {given[key]}` changes the model when LlamaFactory loads it, but `tpaw_engine: vllm` serves the "
        "checkpoint as it is, so another model would generate than is trained. Remove one of the two."
        for key in ("rope_scaling", "quantization_bit", "shift_attn")
        if given.get(key) and engine == "vllm" and given.get("tpaw_prompts")
    ]
