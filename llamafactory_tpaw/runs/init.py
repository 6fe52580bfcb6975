# SPDX-License-Identifier: Apache-2.0
"""`llamafactory-tpaw init`: the run files of a new run, from a model, an SFT set and what can be told of them."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ..arguments.checks import read_tpaw_args
from ..arguments.parsed import RunArguments, parse_reading
from ..arguments.start import is_adapter
from ..data.prompts import load_prompts
from ..data.source import DATASET_INFO, locate, triplet_entry
from ..errors import ConfigError, DataError, Findings
from ..lf import facade
from ..team.checkpoint import check_checkpoint_complete
from ..team.members import load_config, load_encoder, load_tokenizer
from ..team.players import HUB_NAME
from .estimates import steps_of
from .plan import key_problems, with_defaults
from .run_files import next_settings, numbered, own_round, path_of, render, section_of
from .settings import WEIGHTING, Settings
from .sft_set import SftSet, find_sft_set, slug


TPAW = {"tpaw_objective": "tpaw", "tpaw_team_size": 3, "tpaw_reward_scale": 0.1, "tpaw_eta": 6.0, "tpaw_gamma": 0.5}
OWN_KEYS: dict[str, dict[str, Any]] = {
    "tpaw": TPAW,
    "spin": TPAW | {"tpaw_team_size": 1, "tpaw_eta": 1.0, "tpaw_gamma": 0.0},
    "tspin": {"tpaw_objective": "tspin", "tpaw_team_size": 1, "tpaw_scale": 1.0, "tpaw_history_weight": 0.1},
    "iris": {"tpaw_objective": "iris", "tpaw_team_size": 1, "tpaw_reward_scale": 0.1, "tpaw_renyi_alpha": 0.5},
}
LABELS = {"tpaw": "TPAW", "spin": "SPIN", "tspin": "T-SPIN", "iris": "IRIS, reconstructed"}
WITHOUT = {
    "trw": ("target weights", {"tpaw_eta": 1.0}),
    "mpw": ("player weights", {"tpaw_gamma": 0.0}),
    "team": ("a team", {"tpaw_team_size": 1}),
}
SAMPLING = {"tpaw_turn": "last", "tpaw_engine": "hf", "temperature": 1.0, "top_p": 1.0, "top_k": 0}
OUTPUT = {"save_steps": 500, "save_total_limit": 1, "save_only_model": False, "plot_loss": True, "report_to": "none"}
# SPIN's published setting; for adapters and for SFT what LlamaFactory's own examples have.
SCHEDULE = {"num_train_epochs": 2.0, "lr_scheduler_type": "linear", "warmup_ratio": 0.1, "seed": 42}
SELF_PLAY = {"learning_rate": 5e-7, **SCHEDULE, "optim": "rmsprop", "weight_decay": 0.0}
LORA_PLAY = {"learning_rate": 5e-6, **SCHEDULE, "lr_scheduler_type": "cosine"}
SFT = {"learning_rate": 1e-5, **SCHEDULE, "num_train_epochs": 3.0, "lr_scheduler_type": "cosine"}
# With `finetuning_type=lora` theta_0 stays a whole model, so these are not for its SFT.
ADAPTER_KEYS = ("lora_", "loraplus_", "use_dora", "use_rslora", "additional_target", "quantization_", "double_quant")
ADAPTER_KEYS += ("create_new_adapter",)
PRECISION = ("bf16", "fp16", "pure_bf16", "use_cpu")
SFT_TOO = (*PRECISION, "tf32", "seed", "data_seed", "ddp_timeout", "ddp_backend")
SFT_SECTIONS = ("model", "method", "dataset", "output")
UNKNOWN_MODEL = "Custom"  # as LlamaBoard calls a model that is not in its list
BATCH, STEP, MIN_STEPS = 4, 64, 50  # triplets on a device, of a step as in SPIN, and steps of an epoch
LOGGED = 20  # points of a run's curve at least, where it has that many steps
ROWS, MOST_PROMPTS, NO_LIMIT = 512, 50_000, 2**31
MOST_TOKENS, TOKEN_STEP, SHARE = 4096, 64, 0.995


class Project(NamedTuple):
    """What `init` writes and says: texts by path, new entries, the iterations' settings by run, what was found."""

    name: str
    files: dict[str, str]
    entries: dict[str, dict[str, Any]]
    runs: dict[str, list[dict[str, Any]]]
    findings: list[str]


def plan_project(settings: Settings, tell: Callable[[str], None]) -> Project:
    """Look at model and data, telling what takes seconds, and make the files' texts; problems are raised together."""
    place = Path(settings.model).expanduser()
    is_local = place.exists() or not HUB_NAME.fullmatch(settings.model)
    tell("data and model")
    with Findings() as findings:
        with findings.note():
            sft_set = find_sft_set(settings.folder / settings.dataset_dir, settings.data, settings.columns)
        if is_local:
            adapter = [f"{place} is an adapter. Merge it by `llamafactory-cli export`, or give a whole model."]
            findings.refuse(DataError, adapter if is_adapter(place) else check_checkpoint_complete(place))
    here = str(place) if is_local else settings.model
    model_args, _ = parse_reading({**settings.keys, "model_name_or_path": here, "dataset": sft_set.name})
    module = load_tokenizer(model_args, f"`--model {settings.model}`")
    known_as = _known_name(settings.model, is_local)
    template, reason = choose_template(settings.keys.get("template"), module["tokenizer"], known_as)
    inside = is_local and place.resolve().is_relative_to(settings.folder.resolve())
    # As the files name it, which are read in `folder`.
    model = os.path.relpath(place, settings.folder) if inside else str(place.resolve()) if is_local else settings.model
    name = settings.name or slug(f"{Path(settings.model).name}_{sft_set.name}")
    runs = _first_iterations(settings, name, model, sft_set, known_as, template)
    problems = [problem for (first,) in runs.values() for problem in key_problems(first)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    tell("lengths of rows")
    limits, found = _measure(next(iter(runs.values()))[0], here, sft_set, module)
    files, entries = {}, {sft_set.name: sft_set.entry}
    for label, run in runs.items():
        run[0] |= limits
        if settings.sft and not files:
            sft = _sft(settings, run[0], model, sft_set.total or NO_LIMIT)
            files[path_of(sft)] = render(sft, "theta_0: supervised fine-tuning, with LlamaFactory's own stage.")
        for t in range(settings.iterations):
            if t:
                run.append(next_settings(run[-1]))
            title = f"{label}, iteration {t}: theta_{t} plays, theta_{t + 1} comes out."
            files[path_of(run[t])] = render(run[t], f"{title} Samples D_{t} first where it is missing.")
            entries[own_round(run[t])] = triplet_entry(own_round(run[t]))
    columns = ", ".join(f"{role} = `{column}`" for role, column in sft_set.entry.get("columns", {}).items())
    rows = f"{sft_set.total} rows" if sft_set.total else "rows not counted"
    said = [f"template {template}: {reason}", f"data {sft_set.name}: {rows}; {columns or 'columns as its entry says'}"]
    return Project(name, files, entries, runs, [*said, *found])


def _first_iterations(
    settings: Settings, name: str, model: str, sft_set: SftSet, known_as: str | None, template: str
) -> dict[str, list[dict[str, Any]]]:
    """Begin each run with the settings of its iteration 0, but for what the rows settle, by its label."""
    # LlamaBoard lists the runs of saves/<its name of the model>/<finetuning type>.
    board = f"saves/{known_as or UNKNOWN_MODEL}"
    is_lora = settings.keys.get("finetuning_type") == "lora"
    saves = (settings.saves or f"{board}/{'lora' if is_lora else 'full'}").rstrip("/")
    theta_0 = f"{(settings.saves or f'{board}/full').rstrip('/')}/{name}_sft" if settings.sft else model
    of_methods, runs = {key for keys in OWN_KEYS.values() for key in keys}, {}
    rows = sft_set.total or NO_LIMIT
    prompts = {} if rows <= MOST_PROMPTS else {"tpaw_max_prompts": MOST_PROMPTS}
    rows = min(rows, int(settings.keys.get("tpaw_max_prompts", MOST_PROMPTS)))
    for method in settings.objectives:
        own = OWN_KEYS[method]
        free = own.keys() - (() if method == "tpaw" else WEIGHTING)
        given = {key: value for key, value in settings.keys.items() if key in free or key not in of_methods}
        first = {
            "model_name_or_path": theta_0,
            "stage": "tpaw",
            "do_train": True,
            "finetuning_type": "full",
            "tpaw_iteration": 0,
            "tpaw_players": theta_0,
            **own,
            "tpaw_prompts": sft_set.name,
            **prompts,
            **SAMPLING,
            "dataset": numbered(f"{name}_{method}", 0),
            "output_dir": numbered(f"{saves}/{name}_{method}", 0),
            **OUTPUT,
            "logging_steps": 10,
            **_batch(given, rows),
            **(LORA_PLAY if is_lora else SELF_PLAY),
            **_precision(given),
            **given,
            "template": template,
        }
        first |= _pace(first, given, rows * int(first.get("tpaw_samples_per_prompt", 1)))
        runs[LABELS[method]] = [first]
    for part in settings.ablations:
        what, change = WITHOUT[part]
        folder = numbered(f"{saves}/{name}_no_{part}_tpaw", 0)
        label = f"TPAW without {what}, with theta_0 and D_0 of {name}"
        runs[label] = [runs["TPAW"][0] | change | {"output_dir": folder}]
    return runs


def _sft(settings: Settings, first: Mapping[str, Any], base: str, rows: int) -> dict[str, Any]:
    """The settings of theta_0's SFT: keys of model, method, data, output, device and seed count for it, too."""
    shared = {
        key: value
        for key, value in first.items()
        if key in SFT_TOO or (section_of(key) in SFT_SECTIONS and not key.startswith("tpaw_"))
    }
    if first["finetuning_type"] == "lora":
        shared = {key: value for key, value in shared.items() if not key.startswith(ADAPTER_KEYS)}
        shared["finetuning_type"] = "full"
    shared |= {"model_name_or_path": base, "stage": "sft"}
    shared |= {"dataset": first["tpaw_prompts"], "output_dir": first["tpaw_players"]}
    keys = {**SFT, **shared, **_batch(settings.sft_keys, rows), **settings.sft_keys}
    keys |= _pace(keys, {**settings.keys, **settings.sft_keys}, rows)
    return {key: value for key, value in keys.items() if value is not None}  # `sft.key=null` takes a key away


def choose_template(given: Any, tokenizer: Any, known_as: str | None) -> tuple[str, str]:
    """Find the template of a model: as given, as LlamaFactory lists it, or as the tokenizer's chat template writes.

    Returns its name, and why it was chosen. One that cannot be told, or whose tokens are lacking, is a `ConfigError`.
    """
    listed = {}
    if known_as:  # a base model's is that of the chat models made of it
        base = known_as.removesuffix("-Base")
        own = facade.DEFAULT_TEMPLATE.get(known_as)
        chat = {value for key, value in facade.DEFAULT_TEMPLATE.items() if key.startswith(f"{base}-")}
        listed = {own} if own else chat
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
    words = facade.TEMPLATES[name].stop_words if name in facade.TEMPLATES else []
    missing = [word for word in words if word not in tokenizer.get_vocab()]
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


def _measure(first: Mapping[str, Any], model: str, sft_set: SftSet, module: Any) -> tuple[dict[str, Any], list[str]]:
    """Encode the first rows of a local set as the stage would: the keys of iteration 0 that they settle, and why."""
    prompts, targets, bad_rows = [], [], []
    with tempfile.TemporaryDirectory(prefix="llamafactory-tpaw-") as folder:
        name = sft_set.name
        keys = {**first, "model_name_or_path": model, "dataset": name, "dataset_dir": folder, "cutoff_len": NO_LIMIT}
        model_args, data_args = parse_reading(keys)
        if sft_set.path:
            entry = sft_set.entry | {"file_name": str(sft_set.path.resolve())}
            (Path(folder) / DATASET_INFO).write_text(json.dumps({name: entry}), encoding="utf-8")
            alone = SimpleNamespace(local_process_index=0, seed=0, dataloader_num_workers=0)
            args = read_tpaw_args(first)[0]
            encoder = load_encoder(RunArguments(model_args, data_args, alone, args, None), module)[2]
            found = load_prompts(encoder, model_args, data_args, alone, args, first=ROWS)
            prompts, targets = found.prompts.prompt_tokens.tolist(), found.prompts.target_tokens.tolist()
            bad_rows = found.bad_rows
    config = load_config(model_args)
    positions = getattr(config, "max_position_embeddings", None) or MOST_TOKENS
    looked = len(prompts) + len(bad_rows)
    reason = f"{locate(found.entry, bad_rows[0].row)}: {bad_rows[0].reason}" if bad_rows else ""
    if len(bad_rows) > looked / 10:
        raise DataError(
            f"{len(bad_rows)} of {looked} rows of {name} cannot be used, the first is {reason}. Correct the rows, or "
            "name the columns with `--columns`."
        )
    new, cutoff = first.get("max_new_tokens"), first.get("cutoff_len")
    longest = _share(targets) if targets else 1024
    if cutoff is None:
        whole = [sum(pair) for pair in zip(prompts, targets, strict=True)]
        needed = max(_share(whole), max(prompts) + TOKEN_STEP, (new or longest) + 1) if prompts else 2048
        cutoff = min(_round_up(needed), positions, MOST_TOKENS)
    if new is None:
        new = min(_round_up(longest), cutoff - TOKEN_STEP)
    if cutoff > positions or not 0 < new < cutoff or (prompts and min(prompts) >= cutoff):
        raise ConfigError(
            f"`cutoff_len: {cutoff}` and `max_new_tokens: {new}` do not fit: a prompt of {min(prompts, default=1)} "
            f"tokens or more and its response share `cutoff_len`, and the model has {positions} positions. Correct "
            "`--cutoff-len` or `--max-new-tokens`."
        )
    limits, words = {"cutoff_len": cutoff, "max_new_tokens": new}, f"cutoff_len {cutoff}, max_new_tokens {new}"
    if not looked:
        return limits, [words]
    said = [f"{words}: {looked} rows have prompts of {max(prompts)} and targets of {max(targets)} tokens at most"]
    bad = len(bad_rows) + sum(prompt >= cutoff for prompt in prompts)
    if bad:
        said.append(f"{bad} of {looked} rows cannot be used, the first is {reason or 'one that fills `cutoff_len`'}")
        allowed = math.ceil(bad / looked * sft_set.total)
        limits["tpaw_max_bad_rows"] = first.get("tpaw_max_bad_rows", allowed)
    return limits, said


def _known_name(model: str, is_local: bool) -> str | None:
    """LlamaFactory's name of a hub's model, or of a folder that is called like one."""
    folder = Path(model).expanduser().resolve().name.lower()
    for name, sources in facade.SUPPORTED_MODELS.items():
        tails = {name.lower(), *(path.rpartition("/")[2].lower() for path in sources.values())}
        if folder in tails if is_local else model in sources.values():
            return name
    return None


def _batch(keys: Mapping[str, Any], rows: int) -> dict[str, int]:
    """Batch of a device and accumulation that make a step, a smaller one where an epoch would have few."""
    import torch

    step, batch = min(STEP, max(rows // MIN_STEPS, 2 * BATCH)), int(keys.get("per_device_train_batch_size", BATCH))
    steps = max(step // (batch * max(torch.cuda.device_count(), 1)), 1)
    return {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}


def _pace(keys: Mapping[str, Any], given: Mapping[str, Any], triplets: int) -> dict[str, float]:
    """Log each of few steps, and leave warm-up out where it would be all of them; what is given stays."""
    steps = steps_of(with_defaults(keys), triplets)
    pace = {"logging_steps": min(max(steps // LOGGED, 1), 10)} | ({"warmup_ratio": 0.0} if steps == 1 else {})
    return {key: value for key, value in pace.items() if key not in given}


def _precision(keys: Mapping[str, Any]) -> dict[str, bool]:
    import torch

    if any(key in keys for key in PRECISION):
        return {}
    if not torch.cuda.is_available():
        return {"use_cpu": True}
    return {"bf16": True} if torch.cuda.is_bf16_supported() else {}


def _share(lengths: Iterable[int]) -> int:
    """The length that nearly all rows keep to."""
    return (ordered := sorted(lengths))[int(SHARE * len(ordered))]


def _round_up(tokens: int) -> int:
    return -(-tokens // TOKEN_STEP) * TOKEN_STEP
