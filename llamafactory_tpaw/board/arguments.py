# SPDX-License-Identifier: Apache-2.0
"""From what the page shows to the settings of a run file, and back: nothing is lost either way.

What stands in a run file and has no element, or does not fit the one it has, travels in LlamaBoard's `extra_args`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..arguments.fields import FIELDS, Range, parse_number, parse_value
from ..arguments.recorded import same_value
from ..arguments.start import Start
from ..errors import ConfigError
from ..lf import facade
from .fields import BY_KEY, KEPT, OURS, TABLE, Field, not_used


Values = Mapping[str, Any]
STAGE = "tpaw"
ANY_NUMBER = Range(float("-inf"))
COMPUTE_TYPES = ("bf16", "fp16", "pure_bf16")
BOOSTERS: dict[str, tuple[str, Any]] = {
    "flashattn2": ("flash_attn", "fa2"),
    "unsloth": ("use_unsloth", True),
    "liger_kernel": ("enable_liger_kernel", True),
}
# Fields that are empty where the run file lacks the key.
EMPTIED = ("tpaw_prompts", "tpaw_max_prompts", "tpaw_engine_url")
# Keys that are texts, or several of them.
TEXTS = {field.key for field in TABLE if field.kind in ("text", "names")} | {
    "model_name_or_path",
    "adapter_name_or_path",
}
# Zero and halves of characters.
UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
LARGEST = 1e300
SHOWN_CHARACTERS = 80
# What decides what is run and where: further keys say nothing else than the page shows.
FIELD_ONLY = ("dataset_dir", "output_dir", "trust_remote_code")
# Switches that the keys of a group go with.
SWITCHED = {"galore": "use_galore", "apollo": "use_apollo", "swanlab": "use_swanlab"}


def settings_from(values: Values) -> dict[str, Any]:
    r"""Return what a run file says that does what the page shows.

    Args:
        values: Value of every element of the page that is an input, by its full id.

    Raises:
        ConfigError: With a message for each field whose text cannot be read.
    """
    given, problems = _read_table(values)
    extra, extra_problems = read_extra(values.get("train.extra_args"))
    problems += extra_problems
    if values.get("train.use_swanlab") and values.get("train.swanlab_api_key"):
        problems.append(
            "`swanlab_api_key` would be written to the run file. Empty the field and set SWANLAB_API_KEY in the "
            "environment in which LlamaBoard is started."
        )
    if problems:
        raise ConfigError(problems)
    unused = not_used({field.key: values.get(field.element) for field in OURS} | extra) - set(KEPT)
    settings = {"stage": STAGE, "do_train": True, **_model(values)}
    settings |= {key: value for key, value in given.items() if key not in unused}
    settings |= {**_device(values), **_output(values), "plot_loss": True}
    extra = {key: value for key, value in extra.items() if not (key in settings and _is_spelled_default(key, value))}
    conflicts = _conflicts(settings, extra)
    if conflicts:
        raise ConfigError(conflicts)
    return _with_evaluation(settings | extra)


def elements_from(
    settings: Mapping[str, Any],
    values: Values,
    fits: Callable[[str, Any], bool] = lambda element, value: True,
    *,
    partly: bool = False,
) -> dict[str, Any]:
    r"""Return what the page is to show for the settings of a run file.

    Args:
        settings: What stands in the run file.
        values: What the page shows now, for the elements that the settings say nothing of.
        fits: Whether the element of that id can show a value.
        partly: Leave the elements alone whose keys the settings lack, and those that say what θ_t is.

    Returns:
        Values of elements by full id. `settings_from` makes the same settings of them, with LlamaFactory's defaults
        for the keys that they lack.
    """
    if partly:
        shown = {"train.output_dir": _show_composed(settings, values)["train.output_dir"]}
        return shown | {field.element: _show(field, settings[field.key]) for field in TABLE if field.key in settings}
    shown = _show_composed(settings, values)
    for field in TABLE:
        if field.key in settings:
            shown[field.element] = _show(field, settings[field.key])
        elif field.group is None and (field.default is not None or field.absent != "" or field.key in EMPTIED):
            shown[field.element] = _show(field, field.default)
    shown = {element: value for element, value in shown.items() if fits(element, value)}
    back = settings_from({**values, **shown, "train.extra_args": "{}"})
    extra = {key: value for key, value in settings.items() if key not in back or not same_value(back[key], value)}
    shown["train.extra_args"] = json.dumps(extra, ensure_ascii=False)
    return shown


def start_of(values: Values) -> Start:
    """Return θ_t as LlamaBoard's fields say it: its model path, or the checkpoints that were chosen."""
    return Start.of({**_model(values), "model_name_or_path": _model(values)["model_name_or_path"] or ""})


def read_extra(text: str | None) -> tuple[dict[str, Any], list[str]]:
    """Read LlamaBoard's field for further keys: the keys and no message, or none and what is wrong."""
    try:
        extra = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        return {}, [f'`extra_args` is not JSON: {error}. Write an object such as {{"warmup_ratio": 0.1}}.']
    if not isinstance(extra, dict):
        return {}, [f'`extra_args` is {text}, but must be a JSON object such as {{"warmup_ratio": 0.1}}.']
    if extra.get("stage", STAGE) != STAGE:
        return {}, [f"`extra_args` asks for stage {extra['stage']!r}, but stage TPAW is chosen. Remove the key."]
    problems = [problem for key, value in extra.items() for problem in _extra_problems(key, value)]
    return ({}, problems) if problems else (extra, [])


def _extra_problems(key: str, value: Any) -> list[str]:
    """Say what of a further key no run file can say."""
    shown = f"`extra_args` says `{key}: {str(value)[:SHOWN_CHARACTERS]}`, but"
    parts = list(_leaves(value))
    if key in TEXTS and not (
        value is None or (isinstance(value, str | list) and all(isinstance(p, str) for p in parts))
    ):
        return [f"{shown} it must be a text or a list of texts. Correct it."]
    if any(isinstance(part, int | float) and not -LARGEST <= part <= LARGEST for part in parts):
        return [f"{shown} a number in it is not finite or too large. Correct it."]
    if any(isinstance(part, str) and UNWRITABLE.search(part) for part in [key, *parts]):
        return [f"{shown} there is a character in it that no file has. Remove it."]
    return []


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what stands in nested lists and objects, their keys, too."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _is_spelled_default(key: str, value: Any) -> bool:
    """Whether a run file said a default that its field shows, too: what the field shows now goes before it."""
    return key in BY_KEY and not BY_KEY[key].always and same_value(value, BY_KEY[key].default)


def _conflicts(settings: Mapping[str, Any], extra: Mapping[str, Any]) -> list[str]:
    """Say which further keys contradict the page where its field alone counts."""
    defaults = {key: BY_KEY[key].default for key in FIELD_ONLY if key in BY_KEY}
    return [
        f"`extra_args` says `{key}: {extra[key]}`, but its field says {settings.get(key, defaults.get(key))}. Remove "
        "the key there, and use the field."
        for key in FIELD_ONLY
        if key in extra and not same_value(extra[key], settings.get(key, defaults.get(key)))
    ]


def _read_table(values: Values) -> tuple[dict[str, Any], list[str]]:
    """The keys of the table that are to be written, and a message for each field that cannot be read."""
    given, problems = {}, []
    unused = not_used({field.key: values.get(field.element) for field in OURS})
    for field in TABLE:
        if not _group_holds(field.group, values):
            continue
        value, problem = _read(field, values.get(field.element))
        if problem and field.key not in unused:
            problems.append(problem)
        elif not problem and value is not None and (field.always or not same_value(value, field.default)):
            given[field.key] = value
    return given, problems


def _group_holds(group: str | None, values: Values) -> bool:
    method = values.get("top.finetuning_type")
    if group == "freeze":
        return method == "freeze" or (method == "lora" and bool(values.get("train.use_llama_pro")))
    if group == "lora":
        return method == "lora"
    return group is None or bool(values.get(f"train.{SWITCHED[group]}"))


def _read(field: Field, shown: Any) -> tuple[Any, str | None]:
    """Value of a key and no message, or None and what is wrong with the element's."""
    if isinstance(shown, str):
        shown = shown.strip()
    if field.kind == "names":
        names = shown if isinstance(shown, list) else [] if shown is None else str(shown).split(",")
        return ",".join(str(name).strip() for name in names) or None, None
    if field.kind == "switch":
        return (None if field.absent is False and not shown else bool(shown)), None
    if shown is None or shown == "" or (shown == field.absent and field.kind != "text"):
        missing = field.kind != "text" and (field.always or field.default is not None)
        return None, f"`{field.key}` is empty. Give a number." if missing else None
    if field.kind == "text":
        return _read_text(field, shown)
    if isinstance(shown, float) and field.kind == "whole" and shown.is_integer():
        shown = int(shown)
    kind = int if field.kind == "whole" else float
    value, problem = parse_number(field.key, shown, kind, field.allowed or ANY_NUMBER)
    return (None, f"{problem} Correct the field.") if problem else (value, None)


def _read_text(field: Field, shown: Any) -> tuple[Any, str | None]:
    if field.absent and shown == field.absent and not field.always:
        return None, None
    if field.key not in FIELDS:
        return shown, None
    value, problem = parse_value(field.key, shown)
    return (None, problem) if problem else (",".join(value) if isinstance(value, list) else value, None)


def _show(field: Field, value: Any) -> Any:
    """What the element of a key shows for its value."""
    if field.kind == "switch":
        return bool(value)
    if field.kind == "names":
        parts = value if isinstance(value, list | tuple) else str(value or "").split(",")
        return [str(part).strip() for part in parts if str(part).strip()]
    if value is None:
        return field.absent
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _model(values: Values) -> dict[str, Any]:
    """θ_t: LlamaBoard's model, its checkpoint and how its weights are held."""
    method, name = values.get("top.finetuning_type"), values.get("top.model_name")
    found: dict[str, Any] = {"model_name_or_path": values.get("top.model_path"), "finetuning_type": method}
    checkpoint = values.get("top.checkpoint_path")
    if checkpoint and method in facade.PEFT_METHODS:
        names = checkpoint if isinstance(checkpoint, list) else [checkpoint]
        found["adapter_name_or_path"] = ",".join(str(facade.get_save_dir(name, method, each)) for each in names)
    elif checkpoint:
        folder = checkpoint[0] if isinstance(checkpoint, list) else checkpoint
        found["model_name_or_path"] = str(facade.get_save_dir(name, method, folder))
    bits = values.get("top.quantization_bit")
    if bits not in (None, "", "none"):
        found |= {"quantization_bit": int(bits), "quantization_method": values.get("top.quantization_method")}
    key, value = BOOSTERS.get(values.get("top.booster"), (None, None))
    return found | ({key: value} if key else {})


def _device(values: Values) -> dict[str, Any]:
    """What numbers it is computed in, and DeepSpeed."""
    compute = values.get("train.compute_type")
    found: dict[str, Any] = {compute: True} if compute in COMPUTE_TYPES else {}
    stage = values.get("train.ds_stage")
    if stage not in (None, "", "none"):
        found["deepspeed"] = _deepspeed(stage, bool(values.get("train.ds_offload")))
    return found


def _deepspeed(stage: str, offload: bool) -> str:
    return str(Path(facade.BOARD_CACHE, f"ds_z{stage}_{'offload_' if offload else ''}config.json"))


def _output(values: Values) -> dict[str, Any]:
    name, folder = values.get("top.model_name"), values.get("train.output_dir")
    return {"output_dir": output_dir(name, values.get("top.finetuning_type"), folder)} if folder else {}


def output_dir(model_name: str | None, finetuning_type: str | None, shown: str) -> str:
    """Return the folder that LlamaBoard means by what its field shows."""
    # LlamaFactory takes a path as it is, too, but warns of it.
    return shown if os.sep in shown else str(facade.get_save_dir(model_name or "", finetuning_type or "", shown))


def _with_evaluation(settings: dict[str, Any]) -> dict[str, Any]:
    """Where prompts are held out, evaluate on them at each save, as LlamaBoard does."""
    if settings.get("val_size"):
        steps = settings.get("save_steps", BY_KEY["save_steps"].default)
        batch = settings.get("per_device_train_batch_size", BY_KEY["per_device_train_batch_size"].default)
        evaluation = {"eval_strategy": "steps", "eval_steps": steps, "per_device_eval_batch_size": batch}
        settings |= {key: value for key, value in evaluation.items() if key not in settings}
    return settings


def _show_composed(settings: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """The elements that stand for several keys."""
    name = values.get("top.model_name")
    method = settings.get("finetuning_type", values.get("top.finetuning_type"))
    adapters = [part for part in str(settings.get("adapter_name_or_path") or "").split(",") if part]
    compute = next((kind for kind in COMPUTE_TYPES if settings.get(kind) is True), "fp32")
    booster = next((kind for kind, (key, value) in BOOSTERS.items() if settings.get(key) == value), "auto")
    stage, offload = next(
        (
            (stage, offload)
            for stage in ("2", "3")
            for offload in (False, True)
            if settings.get("deepspeed") == _deepspeed(stage, offload)
        ),
        ("none", False),
    )
    peft = method in facade.PEFT_METHODS
    return {
        "top.finetuning_type": method,
        "top.model_path": settings.get("model_name_or_path"),
        "top.checkpoint_path": [_short(name, method, adapter) for adapter in adapters] if peft else None,
        "top.quantization_bit": str(settings.get("quantization_bit") or "none"),
        "top.quantization_method": settings.get("quantization_method") or "bnb",
        "top.booster": booster,
        "train.compute_type": compute,
        "train.ds_stage": stage,
        "train.ds_offload": offload,
        "train.output_dir": _short(name, method, str(settings.get("output_dir") or "")),
    }


def _short(model_name: str | None, method: str | None, folder: str) -> str:
    """A folder's name where LlamaBoard finds it by that, else its path."""
    last = Path(folder).name
    return last if folder and Path(output_dir(model_name, method, last)) == Path(folder) else folder
