# SPDX-License-Identifier: Apache-2.0
"""`llamafactory-tpaw init`: the run files of a new family, from a model, an SFT set and what can be told of them."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ..arguments.fields import FIELDS, TpawArguments
from ..arguments.parsed import RunArguments, parse_reading
from ..arguments.start import is_adapter
from ..data.prompts import BadRow, load_prompts
from ..data.source import DATASET_INFO
from ..errors import ConfigError, DataError, Findings
from ..lf import facade
from ..lf.given import is_true
from ..team.checkpoint import check_checkpoint_complete
from ..team.members import load_encoder
from ..team.players import HUB_NAME
from .estimates import weight_shapes
from .families import GPU_OUTPUT, lora_training, self_play_training, sft_training
from .plan import key_problems
from .run_files import Change, Family, Written, dataset_entries, run_files, write_project
from .settings import Settings
from .sft_set import SftSet, find_sft_set, slug


WITHOUT: dict[str, dict[str, Any]] = {"trw": {"eta": 1.0}, "mpw": {"gamma": 0.0}, "team": {"team_size": 1}}
LEFT_OUT = {"trw": "target weights", "mpw": "player weights", "team": "a team"}
BOARD_FOLDER = re.compile(r"(?:^|/)saves/(?P<model>[^/]+)/[^/]+/[^/]+/?$")
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "spiece.model", "*.tiktoken")
UNKNOWN_MODEL = "Custom"  # as LlamaBoard calls a model that is not in its list
FAMILY_KEYS = {
    "template": "template", "cutoff_len": "cutoff_len", "max_new_tokens": "max_new_tokens", "tpaw_eta": "eta",
    "tpaw_team_size": "team_size", "tpaw_reward_scale": "reward_scale", "tpaw_gamma": "gamma", "tpaw_engine": "engine",
}  # fmt: skip
PROMPT_KEYS = ("tpaw_max_prompts", "tpaw_turn", "tpaw_max_bad_rows")
ENGINE_KEYS = ("tpaw_engine_", "tpaw_vllm_", "tpaw_max_failed", "tpaw_samples_", "tpaw_opponent_")
# With `finetuning_type=lora` theta_0 stays a whole model, so these are not for its SFT.
ADAPTER_KEYS = ("lora_", "loraplus_", "use_dora", "use_rslora", "additional_target", "quantization_", "double_quant")
PRECISION_KEYS = ("bf16", "fp16", "pure_bf16", "use_cpu")
SFT_TRAINING = (*PRECISION_KEYS, "tf32", "seed", "data_seed", "ddp_timeout", "ddp_backend", "deepspeed")
SECTIONS = ("model", "dataset", "train", "method", "generation")  # in the order of LlamaFactory's groups of arguments
MOVED = {
    "deepspeed": "method", "plot_loss": "output", "logging_": "output", "save_": "output", "report_to": "output",
    "run_name": "output", "val_size": "eval", "eval_": "eval", "per_device_eval_batch_size": "eval",
    "tpaw_generate_batch_tokens": "generation", "tpaw_min_response": "generation", "tpaw_prompts_seed": "generation",
}  # fmt: skip
ROWS, MOST_PROMPTS, SMALL_SET, NO_LIMIT = 500, 50_000, 20_000, 2**31
MOST_TOKENS, TOKEN_STEP, SHARE = 4096, 64, 0.995
STEP_TRIPLETS, STEP_ROWS, MIN_STEPS, LOGGED_POINTS = 64, 128, 50, 10  # SPIN's step and its SFT's
DEVICE_TOKENS, CPU_TOKENS, MAX_BATCH = 16384, 4096, 16


class Project(NamedTuple):
    """What `init` writes and says: run files by path, new entries, families (the main one first), what was found."""

    files: dict[str, str]
    entries: dict[str, dict[str, Any]]
    families: list[Family]
    findings: list[tuple[str, str]]


class Lengths(NamedTuple):
    """Tokens of the prompts and targets looked at, rows of no use, how many are, and the limits that follow."""

    prompts: list[int]
    targets: list[int]
    bad_rows: list[BadRow]
    bad: int
    cutoff_len: int
    max_new_tokens: int


def plan_project(settings: Settings, tell: Callable[[str], None]) -> Project:
    r"""Look at model, data and machine, and make the files' texts.

    Args:
        settings: What is asked for.
        tell: Called with what is looked at next, for what takes seconds.

    Raises:
        TpawError: With every problem that can be told at once.
    """
    from transformers import AutoConfig, AutoTokenizer

    place = Path(settings.model).expanduser()
    is_local = place.exists() or not HUB_NAME.fullmatch(settings.model)
    with Findings() as findings:
        with findings.note():
            tell("the SFT set")
            sft_set = find_sft_set(settings.folder / settings.dataset_dir, settings.data, settings.columns)
        with findings.note():
            tell("the model")
            if is_local:
                _check_folder(place, settings.model)
        findings.raise_noted()
    options = {"trust_remote_code": is_true(settings.keys, "trust_remote_code")}
    options |= {name: settings.keys[key] for name, key in (("revision", "model_revision"), ("cache_dir", "cache_dir"))
                if key in settings.keys}  # fmt: skip
    try:
        config = AutoConfig.from_pretrained(str(place) if is_local else settings.model, **options)
        tokenizer = AutoTokenizer.from_pretrained(str(place) if is_local else settings.model, **options)
    except Exception as error:  # the hub's client and the tokenizers raise errors of many kinds
        cause = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"`--model {settings.model}`: config and tokenizer cannot be read: {cause}. It is looked for here, then "
            "on the hub: correct the name, log in (`hf auth login`), or download it and give its folder."
        ) from error
    known_as = _known_name(settings.model, is_local)
    tell("the template")
    template, reason = choose_template(settings.keys.get("template"), tokenizer, known_as)
    inside = place.resolve().is_relative_to(settings.folder.resolve())
    model = os.path.relpath(place, settings.folder) if inside else str(place.resolve()) if is_local else settings.model
    tell("lengths under the tokenizer")
    lengths = measure(settings, str(place) if is_local else model, template, sft_set, config)
    board = BOARD_FOLDER.search(place.resolve().as_posix()) if is_local else None
    board_name = board["model"] if board else known_as or (UNKNOWN_MODEL if is_local else model.rpartition("/")[2])
    count = sum(math.prod(shape) for shape in weight_shapes(str(place), config.get_text_config()).values())
    main = _family(settings, sft_set, lengths, (model, template, board_name))
    main = dataclasses.replace(main, comments=main.comments | {"template": reason})
    families = [main, *(_ablation(main, part) for part in settings.ablations)]
    files = {path: text for family in families for path, text in run_files(family).items()}
    entries = {sft_set.name: sft_set.entry} if sft_set.is_new else {}
    entries |= {name: entry for family in families for name, entry in dataset_entries(family).items()}
    import yaml

    runs = [yaml.safe_load(text) for text in files.values()]
    problems = [problem for run in runs if run["stage"] == "tpaw" for problem in key_problems(run)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    shown = f"{model}: {(config.architectures or [config.model_type])[0]} of {count / 1e6:,.4g} million weights"
    found = _findings(settings, shown, (template, reason), sft_set, lengths, main)
    if not settings.sft and not tokenizer.chat_template:
        found.insert(1, ("", "its tokenizer has no chat template: if it was not fine-tuned yet, add --sft"))
    return Project(files, entries, families, found)


def write(settings: Settings, project: Project, force: bool) -> Written:
    """Write a project where it was asked for, see `write_project`."""
    place, family = (settings.folder, settings.dataset_dir), project.families[0].name
    return write_project(*place, project.files, project.entries, force, family)


def _findings(
    settings: Settings, model: str, template: tuple[str, str], sft_set: SftSet, lengths: Lengths, family: Family
) -> list[tuple[str, str]]:
    """What was found out and chosen: subjects and statements."""
    columns = ", ".join(f"{role} = `{column}`" for role, column in sft_set.entry.get("columns", {}).items())
    rows = f"{sft_set.total} rows" if sft_set.total else "rows not counted"
    train = family.self_play[settings.objectives[0]]
    batch = f"{train.per_device_train_batch_size} x {train.gradient_accumulation_steps} triplets a step"
    found = [
        ("model", f"{model}; {'theta_0 is trained from it first' if settings.sft else 'it is theta_0'}"),
        ("template", f"{template[0]}: {template[1]}"),
        ("data", f"{sft_set.name}: {rows}; {columns or 'columns as its entry says'}"),
        ("limits", f"cutoff_len {lengths.cutoff_len}, max_new_tokens {lengths.max_new_tokens}"),
        ("device", f"{_machine()[0]}; {batch}, a first guess that `check` holds to its memory"),
    ]
    if lengths.prompts:
        longest = f"prompts of {max(lengths.prompts)} and targets of {max(lengths.targets)} tokens at most"
        looked = f"{len(lengths.prompts) + len(lengths.bad_rows)} rows looked at: {longest}"
        found.insert(3, ("", f"{looked}; {lengths.bad} cannot be used"))
    if lengths.bad_rows:
        row = lengths.bad_rows[0]
        found.insert(4, ("", f"the first is row {row.row}: {row.reason}"))
    return found


def choose_template(given: Any, tokenizer: Any, known_as: str | None) -> tuple[str, str]:
    r"""Find the template of a model: as given, as LlamaFactory lists it, or as the tokenizer's chat template writes.

    Returns:
        Its name, and why it was chosen.

    Raises:
        ConfigError: If it cannot be told, or needs tokens that the tokenizer lacks.
    """
    listed = {}
    if known_as:  # a base model's is that of the chat models made of it
        base = known_as.removesuffix("-Base")
        own = facade.DEFAULT_TEMPLATE.get(known_as)
        listed = (
            {own} if own else {value for key, value in facade.DEFAULT_TEMPLATE.items() if key.startswith(f"{base}-")}
        )
    if given:
        name, reason = str(given), "as given"
    elif len(listed) == 1:
        name, reason = listed.pop(), f"LlamaFactory lists it for {known_as}"
    else:
        name, reason = _parsed_template(tokenizer), "it writes turns as the tokenizer's chat template does"
    if name is None:
        raise ConfigError(
            "The template cannot be told: LlamaFactory does not list the model, and none of its templates writes as "
            "the tokenizer's chat template. Choose one with `--template`; `default` fits every tokenizer."
        )
    if name not in facade.TEMPLATES:
        nearest = difflib.get_close_matches(name, list(facade.TEMPLATES), n=1)
        advice = f"Did you mean `{nearest[0]}`?" if nearest else "Leave it out, and `init` looks for one."
        raise ConfigError(f"`template: {name}` is not a template of LlamaFactory. {advice}")
    missing = [word for word in facade.TEMPLATES[name].stop_words if word not in tokenizer.get_vocab()]
    if missing:
        raise ConfigError(
            f"`template: {name}` ({reason}) needs the tokens {', '.join(missing)}, which the model's vocabulary "
            "lacks. Choose another with `--template`; `default` fits every tokenizer."
        )
    return name, reason


def _parsed_template(tokenizer: Any) -> str | None:
    """LlamaFactory's template with the turns that LlamaFactory reads from the tokenizer's chat template."""
    if not tokenizer.chat_template:
        return None
    parsed = facade.parse_template(tokenizer)

    def turns(template: Any) -> tuple[Any, ...]:
        return template.format_user.slots, template.format_assistant.slots

    alike = [name for name, template in facade.TEMPLATES.items() if turns(template) == turns(parsed)]
    alike.sort(key=lambda name: facade.TEMPLATES[name].default_system != parsed.default_system)
    return alike[0] if alike else None


def measure(settings: Settings, model: str, template: str, sft_set: SftSet, config: Any) -> Lengths:
    r"""Encode the first rows of a local set as the stage would, and choose the limits that are not given.

    Raises:
        TpawError: If no row can be used, or the limits do not fit the model.
    """
    prompts, targets, bad_rows, given = [], [], [], settings.keys
    if sft_set.path:
        with tempfile.TemporaryDirectory(prefix="llamafactory-tpaw-") as folder:
            entry = sft_set.entry | {"file_name": str(sft_set.path.resolve())}
            (Path(folder) / DATASET_INFO).write_text(json.dumps({sft_set.name: entry}), encoding="utf-8")
            kept = ("trust_remote_code", "default_system", "enable_thinking", "model_revision", "use_fast_tokenizer")
            keys = {key: given[key] for key in kept if key in given} | {
                "model_name_or_path": model,
                "cache_dir": folder,
            }
            keys |= {"dataset": sft_set.name, "dataset_dir": folder, "template": template, "cutoff_len": NO_LIMIT}
            model_args, data_args = parse_reading(keys)
            turn = given.get("tpaw_turn", FIELDS["tpaw_turn"].default)
            args = TpawArguments(tpaw_prompts=sft_set.name, tpaw_turn=turn, tpaw_cache_dir=folder)
            alone = SimpleNamespace(local_process_index=0, seed=0, dataloader_num_workers=0)
            encoder = load_encoder(RunArguments(model_args, data_args, alone, args, None))[2]
            found = load_prompts(encoder, model_args, data_args, alone, args, first=ROWS)
            prompts, targets = found.prompts.prompt_tokens.tolist(), found.prompts.target_tokens.tolist()
            bad_rows, read = found.bad_rows, len(prompts) + len(found.bad_rows)
            if len(bad_rows) > read / 10:
                first = bad_rows[0]
                raise DataError(
                    f"`--data {settings.data}`: {len(bad_rows)} of {read} rows cannot be used, the first is row "
                    f"{first.row}: {first.reason}. Correct the rows, or name the columns with `--columns`."
                )
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or MOST_TOKENS
    most, whole = min(positions, MOST_TOKENS), [sum(pair) for pair in zip(prompts, targets, strict=True)]
    new = int(given.get("max_new_tokens") or (_round_up(_share(targets)) if targets else 1024))
    fitting = max(_share(whole), max(prompts) + min(_share(targets), TOKEN_STEP), new + 1) if prompts else 2048
    cutoff = int(given.get("cutoff_len") or min(_round_up(fitting), most))
    if not given.get("max_new_tokens"):
        new = min(new, max(cutoff - TOKEN_STEP, cutoff // 2))
    if cutoff > positions or not 0 < new < cutoff or (prompts and min(prompts) >= cutoff):
        raise ConfigError(
            f"`cutoff_len: {cutoff}` and `max_new_tokens: {new}` do not fit: a prompt of {min(prompts, default=1)} "
            f"tokens or more and its response share `cutoff_len`, and the model has {positions} positions. Correct "
            "`--cutoff-len` or `--max-new-tokens`."
        )
    bad = len(bad_rows) + sum(prompt >= cutoff for prompt in prompts)
    return Lengths(prompts, targets, bad_rows, bad, cutoff, new)


def _family(settings: Settings, sft_set: SftSet, lengths: Lengths, found: tuple[str, str, str]) -> Family:
    """Put the main family together from (model, template, board's name of the model) and the rest."""
    (model, template, board_name), given = found, settings.keys
    name = settings.name or slug(f"{Path(settings.model).name}_{sft_set.name}")
    lora = {}
    if given.get("finetuning_type") == "lora":
        lora = {"lora_rank": 8, "lora_target": "all"}
        lora |= {key: value for key, value in given.items() if key.startswith(ADAPTER_KEYS)}
    engine_keys = {key: value for key, value in given.items() if key.startswith(ENGINE_KEYS)}
    own = {
        *PROMPT_KEYS,
        *FAMILY_KEYS,
        *engine_keys,
        *lora,
        *(("finetuning_type", "create_new_adapter") if lora else ()),
    }
    changes = {key: Change(section_of(key), value) for key, value in given.items() if key not in own}
    device, precision, attention = _machine()
    precision = {} if set(PRECISION_KEYS) & set(given) else precision
    rows = sft_set.total or MOST_PROMPTS
    used = min(rows, int(given.get("tpaw_max_prompts", MOST_PROMPTS)))
    prompts = {"tpaw_max_prompts": used} if used < rows or "tpaw_max_prompts" in given else {}
    prompts |= {"tpaw_turn": given.get("tpaw_turn", "last")}
    looked = len(lengths.prompts) + len(lengths.bad_rows)
    allowed = given.get("tpaw_max_bad_rows", lengths.bad and math.ceil(lengths.bad / looked * max(rows, looked)))
    prompts |= {"tpaw_max_bad_rows": allowed} if allowed else {}
    size = _batch_sizes(lengths.cutoff_len, used, 2, given)
    play = (lora_training if lora else self_play_training)(2.0, *size, precision)
    epochs = float(given.get("num_train_epochs", play.num_train_epochs))
    steps = used * epochs / (size[0] * size[1] * max(_devices(), 1))
    output = GPU_OUTPUT | {"logging_steps": max(min(GPU_OUTPUT["logging_steps"], int(steps / LOGGED_POINTS)), 1)}
    small = (1e-5, 3.0) if rows < SMALL_SET else (2e-5, 1.0)
    sft = sft_training(*small, *_batch_sizes(lengths.cutoff_len, rows, 1, settings.sft_keys), precision)
    shared = {
        key: change
        for key, change in changes.items()
        if key in SFT_TRAINING
        or (change.section in ("model", "method", "dataset", "output") and not key.startswith("tpaw_"))
    }
    shared |= {
        key: Change(section_of(key).replace("eval", "train"), settings.sft_keys[key]) for key in settings.sft_keys
    }
    comments = {"use_cpu": "no accelerator was in sight", "per_device_train_batch_size": f"a first guess for {device}"}
    if lengths.prompts:
        comments |= {"cutoff_len": f"prompts have up to {max(lengths.prompts)} tokens"}
        comments |= {"max_new_tokens": f"the longest target has {max(lengths.targets)}"}
    fields = {FAMILY_KEYS[key]: value for key, value in given.items() if key in FAMILY_KEYS}
    limits = {"cutoff_len": lengths.cutoff_len, "max_new_tokens": lengths.max_new_tokens, "template": template}
    return Family(
        **fields | limits,
        name=name,
        note=f"{model} on {sft_set.name}, {device}.",
        model=model,
        sft_data=sft_set.name,
        saves=(settings.saves or f"saves/{board_name}/{'lora' if lora else 'full'}").rstrip("/"),
        sft_saves=f"saves/{board_name}/full" if lora and not settings.saves else None,
        lora=lora,
        new_adapters=is_true(given, "create_new_adapter"),
        run_prefix=f"{name}_",
        theta_0=None if settings.sft else model,
        sft=sft,
        self_play=dict.fromkeys(settings.objectives, play),
        iterations=dict.fromkeys(settings.objectives, settings.iterations),
        prompts=prompts,
        engine_keys=engine_keys,
        model_keys={} if "flash_attn" in given else attention,
        output_keys=output,
        launcher="FORCE_TORCHRUN=1" if given.get("deepspeed") else "",
        changes=changes,
        sft_changes=shared,
        comments={key: text for key, text in comments.items() if key not in given},
    )


def _ablation(main: Family, part: str) -> Family:
    """A separate family, which shares theta_0 and D_0 with the main one."""
    name = f"{main.name}_no_{part}"
    return dataclasses.replace(
        main,
        **WITHOUT[part],
        name=name,
        note=f"Ablation of {main.name}: without {LEFT_OUT[part]}. theta_0 and D_0 are those of {main.name}.",
        run_prefix=f"{name}_",
        theta_0=main.theta("tpaw", 0),
        first_triplets=main.triplets("tpaw", 0),
        self_play={"tpaw": main.self_play["tpaw"]},
        iterations={"tpaw": main.iterations["tpaw"]},
    )


def section_of(key: str) -> str:
    """Return the section of the run file that a key belongs to."""
    for prefix, section in MOVED.items():
        if key.startswith(prefix):
            return section
    groups = zip(facade.TRAIN_ARGS, SECTIONS, strict=True)
    return next((section for kind, section in groups if key in kind.__dataclass_fields__), "train")


def _check_folder(place: Path, given: str) -> None:
    if is_adapter(place):
        raise ConfigError(
            f"`--model {given}` is an adapter, but a whole model is asked for. Merge it with `llamafactory-cli "
            "export` and give the result."
        )
    problems = check_checkpoint_complete(place)
    # transformers would make an empty tokenizer of the model's type.
    if not problems and not any(file for pattern in TOKENIZER_FILES for file in place.glob(pattern)):
        problems = [f"{place} holds no tokenizer. Save the model's tokenizer there, too."]
    if problems:
        raise DataError([f"`--model {given}`: {problem}" for problem in problems])


def _known_name(model: str, is_local: bool) -> str | None:
    """LlamaFactory's name of a hub's model, or of a folder that is called like one."""
    folder = Path(model).expanduser().resolve().name.lower()
    for name, sources in facade.SUPPORTED_MODELS.items():
        tails = {name.lower(), *(path.rpartition("/")[2].lower() for path in sources.values())}
        if folder in tails if is_local else model in sources.values():
            return name
    return None


def _devices() -> int:
    import torch

    return torch.cuda.device_count()


def _machine() -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What trains here, and the keys of its precision and of its attention."""
    import torch

    if not torch.cuda.is_available():
        return "the CPU", {"use_cpu": True}, {}
    properties = torch.cuda.get_device_properties(0)
    recent = properties.major >= 8
    flash = recent and importlib.util.find_spec("flash_attn") is not None
    name = f"{_devices()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return name, {"bf16": True} if recent else {}, {"flash_attn": "fa2"} if flash else {}


def _batch_sizes(cutoff: int, rows: int, sequences: int, given: Mapping[str, Any]) -> tuple[int, int]:
    """Batch of a device and accumulation: a step as SPIN's, smaller where an epoch would have few; as tokens allow."""
    devices, step = _devices(), STEP_TRIPLETS if sequences == 2 else STEP_ROWS
    step = max(_power_of_two(min(step, max(rows // MIN_STEPS, 8))) // _power_of_two(devices), 1)
    tokens = DEVICE_TOKENS if devices else CPU_TOKENS
    batch = _power_of_two(min(tokens // (sequences * cutoff), MAX_BATCH, step))
    batch = int(given.get("per_device_train_batch_size", batch))
    return batch, max(step // max(batch, 1), 1)


def _power_of_two(number: int) -> int:
    return 1 << (max(number, 1).bit_length() - 1)


def _share(lengths: Iterable[int]) -> int:
    """The length that nearly all rows keep to."""
    ordered = sorted(lengths)
    return ordered[min(int(SHARE * len(ordered)), len(ordered) - 1)]


def _round_up(tokens: int) -> int:
    return -(-tokens // TOKEN_STEP) * TOKEN_STEP
