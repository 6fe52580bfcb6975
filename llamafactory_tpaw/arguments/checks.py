# SPDX-License-Identifier: Apache-2.0
"""What a run's settings must satisfy before anything is read: all problems at once, from the keys alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .engine import engine_problems
from .fields import FIELDS, Range, TpawArguments, parse_number, parse_value
from .start import Start


# Keys of LlamaFactory that stage `tpaw` does not go with, the values that are harmless, and why.
INCOMPATIBLE: dict[str, tuple[tuple[Any, ...], str]] = {
    "streaming": ((False,), "triplets are matched with cached log-probs, so all rows are needed"),
    "packing": ((False,), "a triplet's responses are scored one by one"),
    "neat_packing": ((False,), "a triplet's responses are scored one by one"),
    "tokenized_path": ((), "triplets are tokenized from their own files"),
    "mix_strategy": (("concat",), "every round is used whole"),
    "mask_history": ((False,), "only the response is scored"),
    "train_on_prompt": ((False,), "only the response is scored"),
    "adapter_folder": ((), "each adapter is named by its own folder"),
    "pissa_init": ((False,), "it changes the model that policy and players share"),
    "use_kt": ((False,), "it replaces the forward pass that players and policy share"),
    "use_unsloth": ((False,), "it replaces the forward pass that players and policy share"),
    "rope_scaling": (
        ("linear", "yarn", "llama3"),
        "`dynamic` makes a log-prob depend on the longest row of its batch",
    ),
    "fp8": ((False,), "players and policy are run in float32, bf16 or fp16"),
    "moe_aux_loss_coef": ((0, 0.0), "the loss has no term for routers"),
    "mixture_of_depths": ((), "it changes the model that players and policy share"),
    "use_badam": ((False,), "its hooks on the Trainer are not there"),
    "num_beams": ((1,), "responses are sampled one by one"),
    "predict_with_generate": ((False,), "generation is part of the stage itself"),
    "do_predict": ((False,), "it trains and evaluates on triplets; predict in the `sft` stage"),
    "neftune_noise_alpha": ((), "players are scored without noise, so the policy must be too"),
    "label_smoothing_factor": ((0, 0.0), "the loss is over pairs of responses"),
    "pref_beta": ((), "the reward scale is `tpaw_reward_scale` here"),
    "pref_loss": ((), "the loss is chosen by `tpaw_objective` here"),
    "pref_ftx": ((0, 0.0), "the loss has no SFT term"),
    "dpo_label_smoothing": ((0, 0.0), "the loss has no label smoothing"),
    "ref_model": ((), "the reference models are `tpaw_players` here"),
}
FINETUNING_TYPES = ("full", "freeze", "lora")
SAMPLING_KEYS = ("temperature", "top_p", "top_k")
SAMPLING_NUMBERS: dict[str, tuple[type[int] | type[float], Range]] = {
    "temperature": (float, Range(0)),
    "top_p": (float, Range(0, exclusive=True, maximum=1)),
    "top_k": (int, Range(0)),
    "repetition_penalty": (float, Range(0, exclusive=True)),
    "max_new_tokens": (int, Range(1)),
    "seed": (int, Range(0)),
}
REQUIRED_KEYS = {
    "model_name_or_path": "the checkpoint theta_t to start from",
    "template": "the template of the model, as in the `sft` stage",
    "dataset": "the entries of the rounds of triplets, oldest first",
    "output_dir": "the folder for theta_{t+1}",
}


def read_tpaw_args(given: Mapping[str, Any]) -> tuple[TpawArguments, list[str]]:
    r"""Read the `tpaw_*` keys of a run.

    Args:
        given: Every key the user gave, of LlamaFactory and of this package.

    Returns:
        The arguments, with defaults in place of values that are wrong, and one message for each of these.
    """
    values, problems = {}, []
    for name in FIELDS:
        if name not in given:
            continue
        value, problem = parse_value(name, given[name])
        if problem:
            problems.append(problem)
        else:
            values[name] = value
    return TpawArguments(**values), problems


def setting_problems(given: Mapping[str, Any]) -> list[str]:
    r"""Check LlamaFactory's own keys against what stage `tpaw` can do.

    Returns:
        One message a problem: what was given, what is allowed, what to do.
    """
    problems = [f"`{key}` is missing. Give {what}." for key, what in REQUIRED_KEYS.items() if not given.get(key)]
    for key, (harmless, reason) in INCOMPATIBLE.items():
        value = given.get(key)
        if value is not None and value not in harmless:
            problems.append(f"`{key}: {value}` does not go with stage `tpaw`: {reason}. Remove it.")
    problems += _method_problems(given)
    if given.get("tpaw_prompts"):
        problems += _sampling_problems(given)
    return problems + engine_problems(given)


def _method_problems(given: Mapping[str, Any]) -> list[str]:
    """Check which weights are trained, and the adapters from which that starts."""
    start = Start.of(given)
    if start.finetuning_type not in FINETUNING_TYPES:
        return [
            f"`finetuning_type` is {start.finetuning_type}, but stage `tpaw` trains "
            f"{', '.join(f'`{name}`' for name in FINETUNING_TYPES[:-1])} or `{FINETUNING_TYPES[-1]}`. Choose one."
        ]
    problems = []
    adapters = ",".join(start.adapters)
    bits = given.get("quantization_bit")
    if adapters and not start.is_lora:
        problems.append(
            f"`adapter_name_or_path: {adapters}` does not go with `finetuning_type: {start.finetuning_type}`, which "
            "trains the model itself. Set `finetuning_type: lora`, or merge the adapters into the model "
            "(`llamafactory-cli export`) and name the result by `model_name_or_path`."
        )
    if bits and not start.is_lora:
        problems.append(
            f"`quantization_bit: {bits}` does not go with `finetuning_type: {start.finetuning_type}`: quantized "
            "weights cannot be trained. Set `finetuning_type: lora`, or leave the key out."
        )
    if bits and adapters and start.new_adapter:
        problems.append(
            f"`create_new_adapter: true` merges {adapters} into the model, which `quantization_bit: {bits}` does not "
            "allow. Leave it out: the iteration continues the adapter."
        )
    elif bits and len(start.adapters) > 1:
        problems.append(
            f"`adapter_name_or_path` has {len(start.adapters)} adapters, but a model with `quantization_bit: {bits}` "
            "takes one, because none can be merged into it. Merge all but the last into the model that is quantized "
            "(`llamafactory-cli export`)."
        )
    return problems


def _sampling_problems(given: Mapping[str, Any]) -> list[str]:
    problems = []
    absent = [key for key in SAMPLING_KEYS if given.get(key) is None]
    if absent:
        named = ", ".join(f"`{key}`" for key in absent)
        problems.append(
            f"{named} must be given where `tpaw_prompts` is set: LlamaFactory's defaults (0.95, 0.7, 50) would apply "
            "unseen. TPAW samples with `temperature: 1.0`, `top_p: 1.0`, `top_k: 0`."
        )
    for key, (kind, allowed) in SAMPLING_NUMBERS.items():
        if given.get(key) is not None:
            problem = parse_number(key, given[key], kind, allowed)[1]
            problems += [f"{problem} Correct the key."] if problem else []
    return problems
