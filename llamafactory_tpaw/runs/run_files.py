# SPDX-License-Identifier: Apache-2.0
r"""The run files: one YAML an iteration, and their entries of `dataset_info.json`.

A `Family` is everything that the runs on one model and one SFT set share: a family in, texts out. The families that
this project ships are in `families.py`, those of a user are made in `init.py`.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..arguments.checks import read_tpaw_args
from ..arguments.start import Start
from ..data.files import read_json, write_atomic
from ..data.rounds import split_names
from ..data.source import DATASET_INFO, triplet_entry
from ..errors import ConfigError, DataError, EnvironmentProblem


Method = Literal["tpaw", "spin", "tspin"]
Line = tuple[str, Any] | tuple[str, Any, str]
Section = tuple[str, list[Line]]
LABELS = {"tpaw": "TPAW", "spin": "SPIN", "tspin": "T-SPIN"}
TSPIN_KEYS = ("tpaw_scale", "tpaw_history_weight")
EVAL_HINTS = {
    "val_size": "# val_size: 0.02  # share of the prompts held out, the same ones in every iteration",
    "eval_strategy": "# eval_strategy: steps",
    "eval_steps": "# eval_steps: 100",
    "per_device_eval_batch_size": "# per_device_eval_batch_size: 1",
}
NUMBERED = re.compile(r"(?P<stem>.+)_iter(?P<number>\d+)")
PLAIN_TEXT = re.compile(r"(?:[A-Za-z_]|\.{0,2}/)(?:[A-Za-z0-9 ./_,+-]*[A-Za-z0-9./_,+-])?")
# What YAML cannot have in a text or takes for the end of a line.
NEEDS_ESCAPE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


@dataclass(frozen=True)
class Training:
    """How long and how fast one kind of run trains; `extra` holds further LlamaFactory keys as they are."""

    learning_rate: float
    num_train_epochs: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.1
    extra: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> list[Line]:
        """Return the keys of the `### train` section."""
        sizes = ("per_device_train_batch_size", "gradient_accumulation_steps")
        names = (*sizes, "learning_rate", "num_train_epochs", "lr_scheduler_type", "warmup_ratio")
        return [*((name, getattr(self, name)) for name in names), *self.extra.items()]


@dataclass(frozen=True)
class Change:
    """A key that the user set: its section, in case the file has no line for it, and its value."""

    section: str
    value: Any


@dataclass(frozen=True)
class Family:
    """The runs that start from one SFT model."""

    name: str  # prefix of the run files and of the generated datasets
    model: str  # base model, a folder or a hub name
    template: str  # LlamaFactory's template
    sft_data: str  # the SFT set, an entry of dataset_info.json; also the source of the prompts
    saves: str  # folder of the runs; LlamaBoard lists saves/<its model name>/<finetuning type>
    sft: Training  # of theta_0
    self_play: Mapping[Method, Training]  # of an iteration; a method absent here has no run files
    iterations: Mapping[Method, int]  # how many
    run_prefix: str = ""  # put before a run's folder, so that two families can share `saves`
    preference_data: str | None = None  # for the `dpo` run
    dpo: Training | None = None  # the `dpo` run exists only where this is given
    sft_more: Training | None = None  # continued SFT from theta_0 exists only where this is given
    cutoff_len: int = 2048
    max_new_tokens: int = 1024
    prompts: Mapping[str, Any] = field(default_factory=dict)  # keys that choose the prompts, e.g. `tpaw_turn`
    engine: str = "hf"
    engine_keys: Mapping[str, Any] = field(default_factory=dict)  # further ones, e.g. `tpaw_engine_url`
    team_size: int = 3
    reward_scale: float = 0.1
    eta: float = 6.0
    gamma: float = 0.5
    model_keys: Mapping[str, Any] = field(default_factory=dict)  # further keys of the `### model` section
    method_keys: Mapping[str, Any] = field(default_factory=dict)  # of `### method`, e.g. `deepspeed`
    dataset_keys: Mapping[str, Any] = field(default_factory=dict)  # of `### dataset`, e.g. `default_system`
    output_keys: Mapping[str, Any] = field(default_factory=dict)  # of `### output`, beside the folder
    launcher: str = ""  # put before the command in the first comment
    note: str = ""  # a line on what the family is, for its first comment
    theta_0: str | None = None  # the SFT model where there is one; then the family has no `sft` run
    sft_saves: str | None = None  # folder of the `sft` run where it is another one
    lora: Mapping[str, Any] = field(
        default_factory=dict
    )  # keys of LoRA where the iterations train adapters on theta_0
    new_adapters: bool = False  # each iteration merges the adapters before it and begins another one
    first_triplets: str | None = None  # D_0's dataset where another family with the same theta_0 generates it
    changes: Mapping[str, Change] = field(
        default_factory=dict
    )  # keys that replace lines of the iterations, or are added
    sft_changes: Mapping[str, Change] = field(default_factory=dict)  # the same for the `sft` run
    comments: Mapping[str, str] = field(default_factory=dict)  # behind the line of a key that has no other comment

    @property
    def asks_servers_of_theta(self) -> bool:
        """Whether the user has to start a server of theta_t before each iteration."""
        return self.engine == "openai" and not self.engine_keys.get("tpaw_opponent_model")

    def run_folder(self, run: str) -> str:
        """Return the output folder of a run, e.g. `sft` or `tpaw_iter0`."""
        saves = self.sft_saves if run == "sft" and self.sft_saves else self.saves
        return f"{saves}/{self.run_prefix}{run}"

    def theta(self, method: Method, index: int) -> str:
        """Return the folder of theta_index of a method; theta_0 is the SFT model of all methods."""
        if index == 0:
            return self.theta_0 or self.run_folder("sft")
        return self.run_folder(numbered(method, index - 1))

    def start(self, method: Method, index: int) -> Start:
        """Return what iteration `index` of a method starts from, with its adapters."""
        start = Start(self.theta(method, 0), (), "lora" if self.lora else "full", self.new_adapters)
        for number in range(index):
            start = start.after(self.theta(method, number + 1))
        return start

    def triplets(self, method: Method, iteration: int) -> str:
        """Return the dataset name of D_iteration."""
        if iteration == 0 and self.first_triplets:
            return self.first_triplets
        return numbered(f"{self.name}_{method}", iteration)

    def path(self, run: str) -> str:
        """Return the run file's path, relative to the project."""
        return f"yaml/{self.name}_{run}.yaml"


def numbered(stem: str, iteration: int) -> str:
    """How the folder, the triplets and the run file of an iteration end."""
    return f"{stem}_iter{iteration}"


def split_numbered(name: str) -> tuple[str, int] | None:
    """`tpaw_iter2` → (`tpaw`, 2); None for a name without a number."""
    match = NUMBERED.fullmatch(name)
    return (match["stem"], int(match["number"])) if match else None


def run_files(family: Family) -> dict[str, str]:
    """Return the text of every run file of a family, by path relative to the project."""
    theta_0, files = family.theta("tpaw", 0), {}
    if not family.theta_0:
        title = "theta_0: supervised fine-tuning, with LlamaFactory's own stage."
        head = [_model(family, family.model, ""), _method(family, "sft"), _dataset(family, family.sft_data, "")]
        sections = [*head, _output(family, "sft", "theta_0"), ("train", family.sft.lines())]
        files[family.path("sft")] = _render(family, "sft", title, sections, family.sft_changes)
    for method in family.self_play:
        for iteration in range(family.iterations[method]):
            files[family.path(numbered(method, iteration))] = iteration_text(family, method, iteration)
    if family.sft_more is not None:
        title = "Baseline: continued supervised fine-tuning of theta_0, as many steps as all tpaw iterations together."
        head = [_model(family, theta_0, "theta_0"), _method(family, "sft"), _dataset(family, family.sft_data, "")]
        sections = [*head, _output(family, "sft_more", ""), ("train", family.sft_more.lines())]
        files[family.path("sft_more")] = _render(family, "sft_more", title, sections)
    if family.dpo is not None:
        title = "Baseline: DPO of theta_0 on labelled preferences, with LlamaFactory's own stage."
        method = _method(family, "dpo", [("pref_beta", 0.1), ("pref_loss", "sigmoid")])
        head = [_model(family, theta_0, "theta_0: the policy, and the reference model"), method]
        data = _dataset(family, family.preference_data, "")
        sections = [*head, data, _output(family, "dpo", ""), ("train", family.dpo.lines())]
        files[family.path("dpo")] = _render(family, "dpo", title, sections)
    return files


def iteration_text(family: Family, method: Method, iteration: int) -> str:
    r"""Return the run file of one iteration of self-play.

    Args:
        family: What the iterations share.
        method: `tpaw`, `spin` (one player, no weighting) or `tspin` (no reference model).
        iteration: t: the run starts from theta_t and produces theta_{t+1}.
    """
    t, run = iteration, numbered(method, iteration)
    title = f"{LABELS[method]}, iteration {t}: theta_{t} plays, theta_{t + 1} comes out. "
    rounds = range(max(0, t + 1 - _team_size(family, method)), t + 1)
    datasets = ",".join(family.triplets(method, r) for r in rounds)
    sections = [
        _policy(family, method, t),
        _method(family, "tpaw", _method_lines(family, method, t)),
        ("generation", _generation_lines(family, t)),
        _dataset(family, datasets, ", ".join(f"D_{r}" for r in rounds)),
        _output(family, run, f"theta_{t + 1}"),
        ("train", family.self_play[method].lines()),
        ("eval", []),
    ]
    other = () if method == "tspin" else TSPIN_KEYS
    changes = {key: change for key, change in family.changes.items() if key not in other}
    return _render(family, run, f"{title}Samples D_{t} first where it is missing.", sections, changes)


def dataset_entries(family: Family) -> dict[str, dict[str, Any]]:
    """Return the entries of `dataset_info.json` for the triplets that a family's runs generate."""
    names = [family.triplets(method, t) for method in family.self_play for t in range(family.iterations[method])]
    return {name: triplet_entry(name) for name in names if name != family.first_triplets}


def _team_size(family: Family, method: Method) -> int:
    return family.team_size if method == "tpaw" else 1


def _model(family: Family, name: str, comment: str) -> Section:
    return "model", [("model_name_or_path", name, comment), *family.model_keys.items()]


def _policy(family: Family, method: Method, t: int) -> Section:
    start, who = family.start(method, t), f"theta_{t}: generates, then is trained"
    if not family.lora:
        return _model(family, start.model, who)
    name, lines = _model(family, start.model, "theta_0: the model under the adapters")
    if start.adapters:
        made = "merged, and another one is trained" if family.new_adapters else "generates, then is trained on"
        lines.insert(1, ("adapter_name_or_path", ",".join(start.adapters), f"makes it theta_{t}: {made}"))
    return name, lines


def _method(family: Family, stage: str, lines: Iterable[Line] = ()) -> Section:
    trained = [("finetuning_type", "full")]
    if family.lora and stage == "tpaw":
        new = [("create_new_adapter", True)] if family.new_adapters else []
        trained = [("finetuning_type", "lora"), *family.lora.items(), *new]
    return "method", [("stage", stage), ("do_train", True), *trained, *family.method_keys.items(), *lines]


def _method_lines(family: Family, method: Method, t: int) -> list[Line]:
    size = _team_size(family, method)
    who = ", ".join(f"theta_{i}" for i in range(t + 1))
    if method == "tspin":
        who += "; the loss of T-SPIN needs none of them"
    elif t + 1 > size:
        who += f"; the newest {size} play" if size > 1 else "; the newest plays"
    players = ",".join(family.start(method, i).spelled for i in range(t + 1))
    lines: list[Line] = [("tpaw_iteration", t), ("tpaw_players", players, who), ("tpaw_team_size", size)]
    if method == "tspin":
        lines += [("tpaw_objective", "tspin"), ("tpaw_scale", 1.0), ("tpaw_history_weight", 0.1)]
        return [*lines, ("tpaw_proto", family.triplets(method, 0), "D_0 holds y_0")] if t else lines
    eta, gamma = (family.eta, family.gamma) if method == "tpaw" else (1.0, 0.0)
    comment = "" if method == "tpaw" else "one player, eta 1 and gamma 0 are SPIN"
    lines += [("tpaw_objective", "tpaw", comment), ("tpaw_reward_scale", family.reward_scale)]
    return [*lines, ("tpaw_eta", eta), ("tpaw_gamma", gamma)]


def _generation_lines(family: Family, t: int) -> list[Line]:
    comments = {"tpaw_engine_url": f"where theta_{t} is served"} if family.asks_servers_of_theta else {}
    return [
        ("tpaw_prompts", family.sft_data, "the SFT set, an entry of dataset_info.json"),
        *family.prompts.items(),
        ("tpaw_engine", family.engine),
        *((key, value, comments.get(key, "")) for key, value in family.engine_keys.items()),
        *(("temperature", 1.0), ("top_p", 1.0), ("top_k", 0), ("max_new_tokens", family.max_new_tokens)),
    ]


def _dataset(family: Family, names: str, comment: str) -> Section:
    lines = [("dataset", names, comment), ("template", family.template), *family.dataset_keys.items()]
    return "dataset", [*lines, ("cutoff_len", family.cutoff_len)]


def _output(family: Family, run: str, comment: str) -> Section:
    return "output", [("output_dir", family.run_folder(run), comment), *family.output_keys.items()]


def _render(
    family: Family, run: str, title: str, sections: list[Section], changes: Mapping[str, Change] | None = None
) -> str:
    """Write the sections; a changed key takes the place of its line, or stands at the end of its section."""
    command = f"{family.launcher} llamafactory-cli train {family.path(run)}".strip()
    blocks = ["\n".join(f"# {line}" for line in (title, family.note, command) if line)]
    changes, there = changes or {}, {key for _, lines in sections for key, *_ in lines}
    for name, lines in sections:
        added = [(key, change.value) for key, change in changes.items() if change.section == name and key not in there]
        body = [f"### {name}"]
        for key, value, *comment in [*lines, *added]:
            if key in changes:
                body.append(yaml_line(key, changes[key].value))
            else:
                body.append(yaml_line(key, value, "".join(comment) or family.comments.get(key, "")))
        if name == "eval":
            body += [hint for key, hint in EVAL_HINTS.items() if key not in changes]
        blocks.append("\n".join(body))
    return "\n\n".join(blocks) + "\n"


def yaml_line(key: str, value: Any, comment: str = "") -> str:
    """Return the line of a key, so that YAML 1.1 and 1.2 readers see the same value."""
    return f"{key}: {_scalar(value)}" + (f"  # {comment}" if comment else "")


def _scalar(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        text = repr(value)
        if "e" not in text and not 0 < abs(value) < 1e-2:
            return text
        # YAML 1.1 wants a point before an exponent, and a sign behind it.
        mantissa, _, exponent = f"{Decimal(text):e}".partition("e")
        return f"{mantissa}{'' if '.' in mantissa else '.0'}e{exponent}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(value), str(value))
    if value == "":
        return "''"
    if isinstance(value, str) and PLAIN_TEXT.fullmatch(value) and value.lower() not in YAML_WORDS:
        return value
    text = json.dumps(value if isinstance(value, bool | list | dict | None) else str(value), ensure_ascii=False)
    return NEEDS_ESCAPE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


# -- from one iteration to the next


def next_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    r"""Return the settings of the iteration after this one; nothing but what the iteration changes differs.

    Args:
        settings: The keys of an iteration's run file. `output_dir` ends with `_iter<t>`. They are left as they are.

    Raises:
        ConfigError: If a key that this depends on is missing or cannot be counted on.
    """
    args, problems = read_tpaw_args(settings)
    problems += [
        f"`{key}` is missing, and the next iteration starts from it. Give it."
        for key in ("model_name_or_path", "dataset", "output_dir")
        if not settings.get(key)
    ]
    t, folder = args.tpaw_iteration, str(settings.get("output_dir") or "").rstrip("/")
    run = split_numbered(Path(folder).name)
    if folder and (run is None or run[1] != t):
        problems.append(
            f"`output_dir: {folder}` does not end with `_iter{t}`, so the folders of the iterations after it have no "
            f"name. Rename it, such as `{numbered(folder, t)}`, or play one iteration at a time."
        )
    if problems:
        raise ConfigError(problems)
    start = Start.of(settings)
    after = start.after(folder)
    players = [*(names_in(settings.get("tpaw_players")) or [start.spelled]), after.spelled]
    following = {key: copy.deepcopy(value) for key, value in settings.items() if key != "resume_from_checkpoint"}
    following |= {"tpaw_iteration": t + 1, "output_dir": str(Path(folder).with_name(numbered(run[0], t + 1)))}
    following |= {"model_name_or_path": after.model, "tpaw_players": ",".join(players)}
    following |= {"adapter_name_or_path": ",".join(after.adapters)} if after.adapters else {}
    following["dataset"] = ",".join(_next_rounds(names_in(settings["dataset"]), t, run[0], args.rounds_played))
    if args.tpaw_objective == "tspin" and t == 0:
        following["tpaw_proto"] = own_round(settings)
    return following


def own_round(settings: Mapping[str, Any]) -> str | None:
    """Name the entry of `dataset` that is D_t: the one that ends with `_iter<t>`, else the last."""
    names, t = names_in(settings.get("dataset")), read_tpaw_args(settings)[0].tpaw_iteration
    return next((name for name in reversed(names) if _number(name) == t), names[-1] if names else None)


def names_in(value: Any) -> list[str]:
    """Return the names of a key's value, whatever a run file gives there."""
    if isinstance(value, list | tuple):
        return split_names([str(part) for part in value])
    return [] if value is None else split_names(str(value))


def _next_rounds(names: list[str], t: int, run: str, size: int) -> list[str]:
    """D_{t+1} after D_t; older rounds than `size` are left out, other sets stay where they are."""
    newest = next((name for name in reversed(names) if _number(name) == t), None)
    stem = split_numbered(newest)[0] if newest else run
    # An ablation shares D_0 with another run: from then on its rounds have its own name.
    added = numbered(stem if stem.endswith(run) else run, t + 1)
    kept: list[str] = []
    for name in names:
        number = _number(name)
        kept += [name] if number is None or number > t + 1 - size else []
        kept += [added] if name == newest else []
    return kept if newest else [*kept, added]


def _number(name: str) -> int | None:
    parts = split_numbered(name)
    return parts[1] if parts else None


class Written(NamedTuple):
    """Files by path relative to the folder: new, written over others, there already, removed; entries that are new."""

    new: list[str]
    replaced: list[str]
    same: list[str]
    removed: list[str]
    entries: list[str]


def write_project(
    folder: Path,
    dataset_dir: str,
    files: Mapping[str, str],
    entries: Mapping[str, Any],
    force: bool = False,
    family: str | None = None,
) -> Written:
    r"""Write run files, and entries into `dataset_info.json`.

    Args:
        folder: Where `yaml/` is.
        dataset_dir: Where `dataset_info.json` is, below it.
        files: Texts by path relative to the folder.
        entries: New entries.
        force: Overwrite what has another content, and remove run files of `family` that are not written again.
        family: Name of the family that is written.

    Raises:
        ConfigError: If files or entries are there with another content and `force` is not set, naming all of them.
        DataError: If `dataset_info.json` cannot be read.
        EnvironmentProblem: If the folder cannot be written to, or the disk is full.
    """
    info = folder / dataset_dir / DATASET_INFO
    old = read_json(info) if info.exists() else {}
    if not isinstance(old, dict):
        raise DataError(f"{info} must hold a JSON object with an entry for each dataset. Repair or remove it.")
    added = [name for name in entries if name not in old]
    clashes = [name for name in entries if name in old and old[name] != entries[name]]
    there = [name for name in files if os.path.lexists(folder / name)]
    path = info
    try:
        same = [name for name in there if (folder / name).read_bytes() == files[name].encode()]
        replaced = [name for name in there if name not in same]
        conflicts = [*(str(folder / name) for name in replaced), *(f"entry `{name}` of {info}" for name in clashes)]
        if conflicts and not force:
            raise ConfigError(
                f"{', '.join(conflicts)} would be overwritten by other content. Choose another `--name` or folder, or "
                "add `--force`."
            )
        for name, text in files.items():
            path = folder / name
            if name not in same:
                write_atomic(path, text)
        path = info
        if added or clashes:
            write_atomic(info, _merged(info, old, entries, added))
        removed = _older_files(folder, family, files) if force and family else []
        for name in removed:
            path = folder / name
            path.unlink()
    except OSError as error:
        raise EnvironmentProblem(
            f"{path} cannot be read or written: {error.strerror or error}. Free space or choose another folder."
        ) from error
    return Written([name for name in files if name not in there], replaced, same, removed, [*added, *clashes])


def _merged(info: Path, old: dict[str, Any], entries: Mapping[str, Any], added: list[str]) -> str:
    """Add entries; where none is replaced what is there keeps every byte, as its author laid it out."""
    merged = {**old, **entries}
    if old and all(merged[name] == entry for name, entry in old.items()):
        new = json.dumps({name: entries[name] for name in added}, indent=2, ensure_ascii=False)
        text = f"{info.read_text(encoding='utf-8').rstrip()[:-1].rstrip()},{new[1:-1].rstrip()}\n}}\n"
        if json.loads(text) == merged:
            return text
    return json.dumps(merged, indent=2, ensure_ascii=False) + "\n"


def _older_files(folder: Path, family: str, files: Mapping[str, str]) -> list[str]:
    """Run files of a family, its ablations too, that it no longer has."""
    own = re.compile(rf"{re.escape(family)}(_no_(trw|mpw|team))?_(sft|({'|'.join(LABELS)})_iter\d+)\.yaml")
    found = sorted(path.name for path in (folder / "yaml").glob("*.yaml") if own.fullmatch(path.name))
    return [f"yaml/{name}" for name in found if f"yaml/{name}" not in files]
