# SPDX-License-Identifier: Apache-2.0
r"""The run files: one YAML an iteration, and their entries of `dataset_info.json`.

A `Family` is everything that the runs on one model and one SFT set share. Everything here is pure: a family in, texts
out. The families that this project ships are in `families.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..arguments.start import Start
from ..data.source import triplet_entry
from .yaml_text import yaml_line


Method = Literal["tpaw", "spin", "tspin"]
Line = tuple[str, Any] | tuple[str, Any, str]
Section = tuple[str, list[Line]]
TSPIN_KEYS = ("tpaw_scale", "tpaw_history_weight")
EVAL_HINTS = {
    "val_size": "# val_size: 0.02  # share of the prompts held out, the same ones in every iteration",
    "eval_strategy": "# eval_strategy: steps",
    "eval_steps": "# eval_steps: 100",
    "per_device_eval_batch_size": "# per_device_eval_batch_size: 1",
}


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
        return [
            ("per_device_train_batch_size", self.per_device_train_batch_size),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
            ("learning_rate", self.learning_rate),
            ("num_train_epochs", self.num_train_epochs),
            ("lr_scheduler_type", self.lr_scheduler_type),
            ("warmup_ratio", self.warmup_ratio),
            *self.extra.items(),
        ]


@dataclass(frozen=True)
class Change:
    """A key that the user set: its section, in case the file has no line for it, and its value."""

    section: str
    value: Any


@dataclass(frozen=True)
class Family:
    r"""The runs that start from one SFT model.

    Args:
        name: Prefix of the run files and of the generated datasets.
        model: Base model, a folder or a hub name.
        template: LlamaFactory's template.
        sft_data: SFT set, an entry of `dataset_info.json`; also the source of the prompts.
        saves: Folder of the runs; LlamaBoard lists `saves/<its model name>/<finetuning type>`.
        sft: Training of theta_0.
        self_play: Training of an iteration, by method; a method absent here has no run files.
        iterations: Number of iterations, by method.
        run_prefix: Put before a run's folder, so that two families can share `saves`.
        preference_data: Set for the `dpo` run, which exists only where this is given.
        dpo: Training of the `dpo` run.
        sft_more: Training of continued SFT from theta_0, which exists only where this is given.
        cutoff_len: Most tokens of a prompt and its response.
        max_new_tokens: Most tokens of a generated response.
        prompts: `tpaw_*` keys that choose the prompts, e.g. `tpaw_turn`.
        engine: What samples the responses.
        engine_keys: Further keys of the engine, e.g. `tpaw_engine_url`.
        team_size: Most players, and most rounds of triplets.
        reward_scale: Lambda.
        eta: Target weight.
        gamma: Sharpness of the player weights.
        model_keys: Further keys of the `### model` section.
        method_keys: Further keys of the `### method` section, e.g. `deepspeed`.
        dataset_keys: Further keys of the `### dataset` section, e.g. `default_system`.
        output_keys: Keys of the `### output` section beside the folder.
        launcher: Put before the command in the first comment.
        note: A line on what the family is, for its first comment.
        theta_0: The SFT model where there is one; then the family has no `sft` run.
        sft_saves: Folder of the `sft` run where it is another one.
        lora: Keys of LoRA (`lora_rank`, …) where the iterations train adapters on theta_0; empty for all weights.
        new_adapters: Whether each iteration merges the adapters before it and begins another one, instead of training
            on with one adapter.
        first_triplets: Dataset name of D_0 where another family that starts from the same theta_0 generates it.
        changes: Keys of the iterations that replace the lines above, or are added to them.
        sft_changes: The same for the `sft` run.
        comments: Put behind the line of a key that has no other comment.
    """

    name: str
    model: str
    template: str
    sft_data: str
    saves: str
    sft: Training
    self_play: Mapping[Method, Training]
    iterations: Mapping[Method, int]
    run_prefix: str = ""
    preference_data: str | None = None
    dpo: Training | None = None
    sft_more: Training | None = None
    cutoff_len: int = 2048
    max_new_tokens: int = 1024
    prompts: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "hf"
    engine_keys: Mapping[str, Any] = field(default_factory=dict)
    team_size: int = 3
    reward_scale: float = 0.1
    eta: float = 6.0
    gamma: float = 0.5
    model_keys: Mapping[str, Any] = field(default_factory=dict)
    method_keys: Mapping[str, Any] = field(default_factory=dict)
    dataset_keys: Mapping[str, Any] = field(default_factory=dict)
    output_keys: Mapping[str, Any] = field(default_factory=dict)
    launcher: str = ""
    note: str = ""
    theta_0: str | None = None
    sft_saves: str | None = None
    lora: Mapping[str, Any] = field(default_factory=dict)
    new_adapters: bool = False
    first_triplets: str | None = None
    changes: Mapping[str, Change] = field(default_factory=dict)
    sft_changes: Mapping[str, Change] = field(default_factory=dict)
    comments: Mapping[str, str] = field(default_factory=dict)

    @property
    def asks_servers_of_theta(self) -> bool:
        """Whether somebody has to start a server of theta_t before each iteration."""
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


def run_files(family: Family) -> dict[str, str]:
    """Return the text of every run file of a family, by path relative to the project."""
    files = {} if family.theta_0 else {family.path("sft"): sft_text(family)}
    for method in family.self_play:
        for iteration in range(family.iterations[method]):
            files[family.path(numbered(method, iteration))] = iteration_text(family, method, iteration)
    if family.sft_more is not None:
        files[family.path("sft_more")] = sft_more_text(family)
    if family.dpo is not None:
        files[family.path("dpo")] = dpo_text(family)
    return files


def sft_text(family: Family) -> str:
    """Return the run file that trains theta_0 with LlamaFactory's own stage `sft`."""
    title = "theta_0: supervised fine-tuning, with LlamaFactory's own stage."
    sections = [
        _model(family, family.model, ""),
        _method(family, "sft"),
        _dataset(family, family.sft_data, ""),
        _output(family, "sft", "theta_0"),
        ("train", family.sft.lines()),
    ]
    return _render(family, "sft", title, sections, family.sft_changes)


def sft_more_text(family: Family) -> str:
    """Return the run file that goes on with SFT from theta_0, as a baseline of as many steps."""
    title = "Baseline: continued supervised fine-tuning of theta_0, as many steps as all tpaw iterations together."
    sections = [
        _model(family, family.theta("tpaw", 0), "theta_0"),
        _method(family, "sft"),
        _dataset(family, family.sft_data, ""),
        _output(family, "sft_more", ""),
        ("train", family.sft_more.lines()),
    ]
    return _render(family, "sft_more", title, sections)


def dpo_text(family: Family) -> str:
    """Return the run file of the baseline on labelled preferences, LlamaFactory's own stage `dpo`."""
    title = "Baseline: DPO of theta_0 on labelled preferences, with LlamaFactory's own stage."
    sections = [
        _model(family, family.theta("tpaw", 0), "theta_0: the policy, and the reference model"),
        _method(family, "dpo", [("pref_beta", 0.1), ("pref_loss", "sigmoid")]),
        _dataset(family, family.preference_data, ""),
        _output(family, "dpo", ""),
        ("train", family.dpo.lines()),
    ]
    return _render(family, "dpo", title, sections)


def iteration_text(family: Family, method: Method, iteration: int) -> str:
    r"""Return the run file of one iteration of self-play.

    Args:
        family: What the iterations share.
        method: `tpaw`, `spin` (one player, no weighting) or `tspin` (no reference model).
        iteration: t: the run starts from theta_t and produces theta_{t+1}.
    """
    t, run = iteration, numbered(method, iteration)
    label = {"tpaw": "TPAW", "spin": "SPIN", "tspin": "T-SPIN"}[method]
    title = (
        f"{label}, iteration {t}: theta_{t} plays, theta_{t + 1} comes out. Samples D_{t} first where it is missing."
    )
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
    return _render(family, run, title, sections, changes)


def dataset_entries(family: Family) -> dict[str, dict[str, Any]]:
    """Return the entries of `dataset_info.json` for the triplets that a family's runs generate."""
    return {
        name: triplet_entry(name)
        for method in family.self_play
        for name in (family.triplets(method, t) for t in range(family.iterations[method]))
        if name != family.first_triplets
    }


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
    head = [("stage", stage), ("do_train", True), *trained]
    return "method", [*head, *family.method_keys.items(), *lines]


def _method_lines(family: Family, method: Method, t: int) -> list[Line]:
    thetas, size = [f"theta_{i}" for i in range(t + 1)], _team_size(family, method)
    who = ", ".join(thetas)
    if method == "tspin":
        who += "; the loss of T-SPIN needs none of them"
    elif t + 1 > size:
        who += f"; the newest {size} play" if size > 1 else "; the newest plays"
    lines: list[Line] = [
        ("tpaw_iteration", t),
        ("tpaw_players", ",".join(family.start(method, i).spelled for i in range(t + 1)), who),
        ("tpaw_team_size", size),
    ]
    if method == "tspin":
        lines += [("tpaw_objective", "tspin"), ("tpaw_scale", 1.0), ("tpaw_history_weight", 0.1)]
        return [*lines, ("tpaw_proto", family.triplets(method, 0), "D_0 holds y_0")] if t else lines
    eta, gamma = (family.eta, family.gamma) if method == "tpaw" else (1.0, 0.0)
    return [
        *lines,
        ("tpaw_objective", "tpaw", "" if method == "tpaw" else "one player, eta 1 and gamma 0 are SPIN"),
        ("tpaw_reward_scale", family.reward_scale),
        ("tpaw_eta", eta),
        ("tpaw_gamma", gamma),
    ]


def _generation_lines(family: Family, t: int) -> list[Line]:
    comments = {"tpaw_engine_url": f"where theta_{t} is served"} if family.asks_servers_of_theta else {}
    return [
        ("tpaw_prompts", family.sft_data, "the SFT set, an entry of dataset_info.json"),
        *family.prompts.items(),
        ("tpaw_engine", family.engine),
        *((key, value, comments.get(key, "")) for key, value in family.engine_keys.items()),
        ("temperature", 1.0),
        ("top_p", 1.0),
        ("top_k", 0),
        ("max_new_tokens", family.max_new_tokens),
    ]


def _dataset(family: Family, names: str, comment: str) -> Section:
    lines = [("dataset", names, comment), ("template", family.template), *family.dataset_keys.items()]
    return "dataset", [*lines, ("cutoff_len", family.cutoff_len)]


def _output(family: Family, run: str, comment: str) -> Section:
    return "output", [("output_dir", family.run_folder(run), comment), *family.output_keys.items()]


def _render(
    family: Family, run: str, title: str, sections: list[Section], changes: Mapping[str, Change] | None = None
) -> str:
    command = f"{family.launcher} llamafactory-cli train {family.path(run)}".strip()
    blocks = ["\n".join(f"# {line}" for line in (title, family.note, command) if line)]
    changes = changes or {}
    for name, lines in _changed(sections, changes):
        body = [f"### {name}"]
        for key, value, *comment in lines:
            found_out = "" if key in changes else family.comments.get(key, "")
            body.append(yaml_line(key, value, "".join(comment) or found_out))
        if name == "eval":
            given = {key for key, *_ in lines}
            body += [hint for key, hint in EVAL_HINTS.items() if key not in given]
        blocks.append("\n".join(body))
    return "\n\n".join(blocks) + "\n"


def _changed(sections: list[Section], changes: Mapping[str, Change]) -> list[Section]:
    """Put the values of `changes` in the place of those lines, or at the end of their sections."""
    there = {key for _, lines in sections for key, *_ in lines}
    result: list[Section] = []
    for name, lines in sections:
        replaced: list[Line] = [(line[0], changes[line[0]].value) if line[0] in changes else line for line in lines]
        added = [(key, change.value) for key, change in changes.items() if change.section == name and key not in there]
        result.append((name, [*replaced, *added]))
    return result
