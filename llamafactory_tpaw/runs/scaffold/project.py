# SPDX-License-Identifier: Apache-2.0
"""The texts of a new run's files, made of what was asked for and what was found out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError, Findings
from ...lf import facade
from ..families import GPU_OUTPUT, lora_training, self_play_training, sft_training
from ..plan import key_problems
from ..run_files import Change, Family, Method, dataset_entries, run_files
from .dataset import SftSet, find_sft_set
from .lengths import USELESS_SHARE, Lengths, measure
from .machine import GIB, Machine, batch_sizes, look_at_machine
from .model import Model, find_model
from .settings import ABLATIONS, Settings, slug
from .templates import Choice, choose_template


Finding = tuple[str, str]
SECTIONS = ("model", "dataset", "train", "method", "generation")  # in the order of LlamaFactory's groups of arguments
# Keys that stand elsewhere than their group.
MOVED = {
    "deepspeed": "method",
    "plot_loss": "output",
    "val_size": "eval",
    "per_device_eval_batch_size": "eval",
    "tpaw_generate_batch_tokens": "generation",
    "tpaw_min_response": "generation",
    "tpaw_prompts_seed": "generation",
}
MOVED_PREFIXES = {
    "logging_": "output",
    "save_": "output",
    "report_to": "output",
    "run_name": "output",
    "eval_": "eval",
}
PRECISION_KEYS = ("bf16", "fp16", "pure_bf16", "use_cpu")
# Of the other sections' keys, those that are not for SFT; of the training keys, those that it shares.
OF_ITERATIONS = ("eval_dataset",)
COMMON_TRAINING = (*PRECISION_KEYS, "tf32", "seed", "data_seed", "ddp_timeout", "ddp_backend", "deepspeed")
FAMILY_KEYS = {
    "template": "template",
    "cutoff_len": "cutoff_len",
    "max_new_tokens": "max_new_tokens",
    "tpaw_team_size": "team_size",
    "tpaw_reward_scale": "reward_scale",
    "tpaw_eta": "eta",
    "tpaw_gamma": "gamma",
    "tpaw_engine": "engine",
}
TRAINED = ("finetuning_type", "create_new_adapter")
ENGINE_PREFIXES = ("tpaw_engine_", "tpaw_vllm_", "tpaw_max_failed", "tpaw_samples_", "tpaw_opponent_")
PROMPT_KEYS = ("tpaw_max_prompts", "tpaw_turn", "tpaw_max_bad_rows")
# With `finetuning_type=lora` theta_0 stays a whole model, so these are not for its SFT.
ADAPTER_KEYS = ("lora_", "loraplus_", "use_dora", "use_rslora", "additional_target", "quantization_", "double_quant")
WITHOUT: dict[str, dict[str, Any]] = {"trw": {"eta": 1.0}, "mpw": {"gamma": 0.0}, "team": {"team_size": 1}}
MOST_PROMPTS = 50_000  # as many as SPIN and TPAW use of UltraChat
SMALL_SET = 20_000


@dataclass(frozen=True)
class Project:
    r"""Everything that `init` has to write and to say.

    Attributes:
        files: Texts of the run files, by path relative to the folder.
        entries: New entries of `dataset_info.json`.
        families: The runs; the first holds the main ones.
        findings: What was found out: subject and statement.
    """

    files: dict[str, str]
    entries: dict[str, dict[str, Any]]
    families: list[Family]
    findings: list[Finding]


@dataclass(frozen=True)
class _Found:
    """What was looked at, and the limits that follow of it."""

    settings: Settings
    model: Model
    sft_set: SftSet
    machine: Machine
    template: Choice
    lengths: Lengths | None
    limits: dict[str, int]

    @property
    def rows(self) -> int:
        """Rows of the SFT set, as far as they are known."""
        known = self.lengths and (self.lengths.total or self.lengths.sampled)
        return known or self.sft_set.total or MOST_PROMPTS

    def prompts(self) -> dict[str, Any]:
        """Keys that choose the prompts."""
        given = self.settings.keys
        choice: dict[str, Any] = {}
        most = given.get("tpaw_max_prompts", MOST_PROMPTS if self.rows > MOST_PROMPTS else None)
        if most is not None:
            choice["tpaw_max_prompts"] = most
        choice["tpaw_turn"] = given.get("tpaw_turn", "last")
        bad = 0
        if self.lengths:
            bad = self.lengths.bad_allowance(self.limits["cutoff_len"], given.get("tpaw_min_response", 1), most)
        if given.get("tpaw_max_bad_rows", bad):
            choice["tpaw_max_bad_rows"] = given.get("tpaw_max_bad_rows", bad)
        return choice


def plan_project(settings: Settings, tell: Callable[[str], None]) -> Project:
    r"""Look at model, data and machine, and make the files' texts.

    Args:
        settings: What is asked for.
        tell: Called with what is looked at next, for what takes seconds.

    Raises:
        TpawError: With everything that does not fit, as far as it can be told at once.
    """
    found = _look(settings, tell)
    main = _family(found)
    families = [main, *(_ablation(main, part) for part in settings.ablations)]
    files: dict[str, str] = {}
    entries = {found.sft_set.name: found.sft_set.entry} if found.sft_set.is_new else {}
    for family in families:
        files |= run_files(family)
        entries |= dataset_entries(family)
    _check(files)
    return Project(files, entries, families, _findings(found, main))


def _look(settings: Settings, tell: Callable[[str], None]) -> _Found:
    with Findings() as findings:
        with findings.note():
            tell("the SFT set")
            sft_set = find_sft_set(settings)
        with findings.note():
            tell("the model")
            model = find_model(settings)
        findings.raise_noted()
        tell("the template")
        thinks = any("<think>" in str(row) for row in sft_set.rows)
        template = choose_template(settings, model.tokenizer, model.text_config.model_type, model.known_as, thinks)
        given = {key: settings.keys[key] for key in ("cutoff_len", "max_new_tokens") if settings.keys.get(key)}
        lengths = None
        if sft_set.path or len(given) < 2:
            tell("lengths under the tokenizer")
            lengths = measure(settings, model, template.name, sft_set)
        limits = lengths.limits(model.max_positions, given) if lengths else given
        _check_limits(limits, model)
        if lengths and "tpaw_max_bad_rows" not in settings.keys:
            _check_prompts_fit(lengths, limits["cutoff_len"], settings.keys.get("tpaw_min_response", 1))
        return _Found(settings, model, sft_set, look_at_machine(), template, lengths, limits)


def _check_limits(limits: Mapping[str, int], model: Model) -> None:
    cutoff, new, positions = limits["cutoff_len"], limits["max_new_tokens"], model.max_positions
    problems = []
    if positions and cutoff > positions:
        problems.append(
            f"`cutoff_len: {cutoff}` is more than the {positions} positions of {model.path}. Give at most {positions}."
        )
    if not 0 < new < cutoff:
        problems.append(
            f"`max_new_tokens: {new}` must be at least 1 and below `cutoff_len: {cutoff}`, which counts the prompt "
            "too. Correct one of them with `--max-new-tokens` or `--cutoff-len`."
        )
    if problems:
        raise ConfigError(problems)


def _check_prompts_fit(lengths: Lengths, cutoff: int, min_response: int) -> None:
    """Refuse a limit under which a large part of the set would be dropped as bad rows."""
    bad = lengths.count_bad(cutoff, min_response)
    if bad > USELESS_SHARE * lengths.sampled:
        raise ConfigError(
            f"`cutoff_len: {cutoff}` leaves no room for a response in {bad} of {lengths.sampled} rows looked at: "
            f"their prompts have up to {max(lengths.prompts)} tokens. Give more with `--cutoff-len`, or allow for "
            "that many bad rows with `tpaw_max_bad_rows=…`."
        )


def _family(found: _Found) -> Family:
    settings, model, machine = found.settings, found.model, found.machine
    name = settings.name or slug(f"{Path(settings.model).name}_{found.sft_set.name}") or "run"
    engine_keys = {key: value for key, value in settings.keys.items() if key.startswith(ENGINE_PREFIXES)}
    lora, new_adapters = _adapters(settings.keys)
    own = {*PROMPT_KEYS, *FAMILY_KEYS, *engine_keys, *lora, *(TRAINED if lora else ())}
    keys = {key: value for key, value in settings.keys.items() if key not in own}
    fields = {FAMILY_KEYS[key]: value for key, value in settings.keys.items() if key in FAMILY_KEYS}
    changes = {key: Change(section_of(key), value) for key, value in keys.items()}
    precision = {} if set(PRECISION_KEYS) & set(settings.keys) else machine.precision()
    prompts = found.prompts()
    rows = min(prompts.get("tpaw_max_prompts", found.rows), found.rows)
    sizes = [
        batch_sizes(machine, found.limits, model.text_config, model.parameters, count, sequences)
        for count, sequences in ((rows, 2), (found.rows, 1))
    ]
    play = (lora_training if lora else self_play_training)(2.0, *_with_given_batch(sizes[0], settings.keys), precision)
    small = found.rows < SMALL_SET
    sft = sft_training(
        1e-5 if small else 2e-5, 3.0 if small else 1.0, *_with_given_batch(sizes[1], settings.sft_keys), precision
    )
    return Family(
        **{**fields, **found.limits, "template": found.template.name},
        name=name,
        note=f"{_model_words(model)} on {found.sft_set.name}, {_device_words(machine)}.",
        model=model.path,
        sft_data=found.sft_set.name,
        saves=(settings.saves or f"saves/{model.board_name}/{'lora' if lora else 'full'}").rstrip("/"),
        sft_saves=f"saves/{model.board_name}/full" if lora and not settings.saves else None,
        lora=lora,
        new_adapters=new_adapters,
        run_prefix=f"{name}_",
        theta_0=None if settings.sft else model.path,
        sft=sft,
        self_play=dict.fromkeys(settings.objectives, play),
        iterations=dict.fromkeys(settings.objectives, settings.iterations),
        prompts=prompts,
        engine_keys=engine_keys,
        model_keys={} if "flash_attn" in settings.keys else machine.attention(),
        output_keys=GPU_OUTPUT,
        launcher=_launcher(settings),
        changes=changes,
        sft_changes=_sft_changes(changes, settings.sft_keys),
        comments=_comments(found, precision, prompts),
    )


def _adapters(keys: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the keys of LoRA, none where all weights are trained, and whether each iteration begins an adapter."""
    if keys.get("finetuning_type") != "lora":
        return {}, False
    given = {key: value for key, value in keys.items() if key.startswith(ADAPTER_KEYS)}
    return {"lora_rank": 8, "lora_target": "all"} | given, bool(keys.get("create_new_adapter"))


def _with_given_batch(sizes: tuple[int, int], keys: Mapping[str, Any]) -> tuple[int, int]:
    """Keep the size of a step where the user gives the batch of a device."""
    batch, accumulation = sizes
    given = keys.get("per_device_train_batch_size", batch)
    return given, max(batch * accumulation // max(given, 1), 1)


def _launcher(settings: Settings) -> str:
    """What stands before the commands: LlamaFactory starts a process for each device in sight by itself."""
    return "FORCE_TORCHRUN=1" if settings.keys.get("deepspeed") else ""


def _sft_changes(changes: Mapping[str, Change], sft_keys: Mapping[str, Any]) -> dict[str, Change]:
    common = {
        key: change
        for key, change in changes.items()
        if key not in OF_ITERATIONS
        and (
            key in COMMON_TRAINING
            or (change.section in ("model", "method", "dataset", "output") and not key.startswith("tpaw_"))
        )
    }
    own = {key: Change(section_of(key).replace("eval", "train"), value) for key, value in sft_keys.items()}
    return common | own


def section_of(key: str) -> str:
    """Return the section of the run file that a key belongs to."""
    moved = MOVED.get(key) or next((MOVED_PREFIXES[prefix] for prefix in MOVED_PREFIXES if key.startswith(prefix)), "")
    if moved:
        return moved
    groups = zip(facade.TRAIN_ARGS, SECTIONS, strict=True)
    return next(
        (section for kind, section in groups if key in {spec.name for spec in dataclasses.fields(kind)}), "train"
    )


def _ablation(main: Family, part: str) -> Family:
    """A family of its own, which shares theta_0 and D_0 with the main one."""
    method: Method = "tpaw"
    name = f"{main.name}_no_{part}"
    return dataclasses.replace(
        main,
        **WITHOUT[part],
        name=name,
        note=f"Ablation of {main.name}: {ABLATIONS[part]}. theta_0 and D_0 are those of {main.name}.",
        run_prefix=f"{name}_",
        theta_0=main.theta(method, 0),
        first_triplets=main.triplets(method, 0),
        self_play={method: main.self_play[method]},
        iterations={method: main.iterations[method]},
    )


def _check(files: Mapping[str, str]) -> None:
    """Refuse values that stage `tpaw` would refuse."""
    import yaml

    runs = [yaml.safe_load(text) for text in files.values()]
    problems = [problem for run in runs if run["stage"] == "tpaw" for problem in key_problems(run)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _comments(found: _Found, precision: Mapping[str, Any], prompts: Mapping[str, Any]) -> dict[str, str]:
    comments = {"template": found.template.reason}
    if "use_cpu" in precision:
        comments["use_cpu"] = "no accelerator was in sight"
    if "per_device_train_batch_size" not in found.settings.keys:
        comments["per_device_train_batch_size"] = f"a first guess for {found.machine.name}"
    if not found.lengths:
        return comments
    lengths, given = found.lengths, found.settings.keys
    if not given.get("cutoff_len"):
        longest = max(prompt + target for prompt, target in zip(lengths.prompts, lengths.targets, strict=True))
        comments["cutoff_len"] = f"the longest of {lengths.sampled} rows has {longest} tokens"
    if not given.get("max_new_tokens"):
        comments["max_new_tokens"] = f"the longest target has {max(lengths.targets)}"
    if "tpaw_max_bad_rows" in prompts and "tpaw_max_bad_rows" not in given:
        bad = lengths.count_bad(found.limits["cutoff_len"], 1)
        comments["tpaw_max_bad_rows"] = f"{bad} of {lengths.sampled} rows looked at cannot be used"
    return comments


def _findings(found: _Found, family: Family) -> list[Finding]:
    model, sft_set, lengths = found.model, found.sft_set, found.lengths
    start = "theta_0 is trained from it first" if found.settings.sft else "it is theta_0"
    findings = [("model", f"{model.path}: {_model_words(model)}; {start}")]
    if not found.settings.sft and not model.has_chat_template:
        findings.append(
            ("", "its tokenizer has no chat template, as a base model's: if it was not fine-tuned yet, add --sft")
        )
    findings.append(("template", f"{found.template.name}: {found.template.reason}"))
    findings.append(("data", f"{sft_set.name}: {_data_words(sft_set, lengths)}"))
    if lengths:
        findings.append(("", _length_words(lengths)))
        findings += _bad_row_words(found, family)
    findings.append(("limits", f"cutoff_len {family.cutoff_len}, max_new_tokens {family.max_new_tokens}"))
    findings.append(("device", _device_words(found.machine, long=True)))
    return findings


def _model_words(model: Model) -> str:
    kind = (model.config.architectures or [model.text_config.model_type])[0]
    count = model.parameters
    if count is None:
        return kind
    size = f"{count / 1e9:.3g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"
    return f"{kind} of {size} parameters"


def _data_words(sft_set: SftSet, lengths: Lengths | None) -> str:
    total = (lengths and lengths.total) or sft_set.total
    columns = ", ".join(f"{role} = `{column}`" for role, column in sft_set.entry.get("columns", {}).items())
    place = sft_set.path or sft_set.entry.get("hf_hub_url") or "as its entry says"
    rows = f", {total} rows" if total else ""
    return f"{place}{rows}{f'; {columns}' if columns else ''}{'' if sft_set.is_new else ' (entry is there)'}"


def _length_words(lengths: Lengths) -> str:
    def span(tokens: list[int]) -> str:
        return f"{sorted(tokens)[len(tokens) // 2]} tokens (median) and {max(tokens)} at most"

    which = "all rows" if lengths.is_whole else f"{lengths.sampled} rows looked at"
    return f"{which}: prompts have {span(lengths.prompts)}, targets {span(lengths.targets)}"


def _bad_row_words(found: _Found, family: Family) -> list[Finding]:
    lengths = found.lengths
    bad = lengths.count_bad(family.cutoff_len, 1)
    if not bad:
        return []
    first = ""
    if lengths.bad_rows:
        row = lengths.bad_rows[0]
        number = found.sft_set.numbers[row.row - 1] if found.sft_set.numbers else row.row
        first = f" First: row {number}, because {row.reason}."
    return [("", f"{bad} of them cannot be used and are dropped.{first}")]


def _device_words(machine: Machine, long: bool = False) -> str:
    if not machine.devices:
        return "CPU: no accelerator is in sight" if long else "the CPU"
    if not long:
        return f"one {machine.name}"
    words = f"{machine.name}{f', {machine.memory / GIB:.0f} GiB' if machine.memory else ''}"
    kernel = "flash-attention 2" if machine.flash_attention else "no flash-attention 2"
    return f"{machine.devices} x {words}, {'bfloat16' if machine.bf16 else 'no bfloat16'}, {kernel}"
