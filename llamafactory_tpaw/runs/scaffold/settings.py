# SPDX-License-Identifier: Apache-2.0
"""What the user gives to `init`: flags, `key=value` overrides and a run file to take settings from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ...arguments.fields import FIELDS, parse_value
from ...errors import ConfigError
from ...lf.given import read_given, unknown_key_problems
from ..run_files import Method


METHODS = get_args(Method)
ABLATIONS = {"trw": "without target weights", "mpw": "without player weights", "team": "without a team"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
OVERRIDE = re.compile(r"(?P<sft>sft\.)?(?P<key>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)", re.DOTALL)
COLUMN_ROLES = ("prompt", "query", "response", "history", "messages", "system", "tools")
DEFAULT_ITERATIONS = 4
# Keys that `init` writes itself, and what to give instead.
LAYOUT = {
    "model_name_or_path": "Give the model with `--model`.",
    "dataset": "Give the SFT set with `--data`.",
    "tpaw_prompts": "Give the SFT set with `--data`.",
    "output_dir": "Give the folder of the runs with `--saves`.",
    "tpaw_objective": "Choose it with `--objective`.",
    "tpaw_iteration": "Give the number of iterations with `--iterations`.",
    "tpaw_players": "They follow from `--model` and `--iterations`.",
    "tpaw_proto": "It follows from `--objective tspin`.",
    "stage": "It follows from `--objective` and `--sft`.",
    "do_train": "The files are for training.",
    "adapter_name_or_path": "It follows from the iteration: `--model` is theta_0, a whole model.",
}
SECRETS = ("hf_hub_token", "ms_hub_token", "om_hub_token")
POSITIVE = (
    "cutoff_len",
    "gradient_accumulation_steps",
    "learning_rate",
    "max_new_tokens",
    "num_train_epochs",
    "per_device_train_batch_size",
)
# What makes SPIN of TPAW. A file of another objective says nothing about these.
WEIGHTING = ("tpaw_team_size", "tpaw_eta", "tpaw_gamma")


@dataclass(frozen=True)
class Settings:
    r"""What is asked for.

    Attributes:
        model: A folder or a hub name.
        data: An entry of `dataset_info.json` or a file.
        folder: Where `yaml/` and `data/` are written.
        name: Prefix of run files and datasets; None for one made of model and data.
        objectives: Kinds of self-play.
        ablations: Parts of TPAW to leave out, each in a family of its own.
        iterations: Number of iterations.
        sft: Whether theta_0 is still to be trained from `model`.
        saves: Folder of the runs; None for LlamaBoard's.
        columns: Which column is what, for a file.
        like_template: The template of the run file of `--like`, where the model is another one: it only settles
            what is ambiguous.
        keys: Keys of run files that the user set, of the iterations and, where they fit, of SFT.
        sft_keys: Keys of the SFT file alone.
    """

    model: str
    data: str
    folder: Path = Path(".")
    name: str | None = None
    objectives: tuple[Method, ...] = ("tpaw",)
    ablations: tuple[str, ...] = ()
    iterations: int = DEFAULT_ITERATIONS
    sft: bool = False
    saves: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    like_template: str | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    sft_keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dataset_dir(self) -> str:
        """Folder of `dataset_info.json`, relative to `folder`."""
        return str(self.keys.get("dataset_dir", "data"))

    @property
    def model_keys(self) -> dict[str, Any]:
        """Keys on which it depends where and how the model is found."""
        wanted = ("trust_remote_code", "cache_dir", "model_revision", "use_fast_tokenizer")
        return {key: self.keys[key] for key in wanted if key in self.keys}


def read_settings(flags: Mapping[str, Any], overrides: Sequence[str] = (), like: str | None = None) -> Settings:
    r"""Join what was given; an override counts more than a flag, a flag more than the run file of `like`.

    Args:
        flags: Attributes of `Settings` as texts, and keys of run files; None stands for a flag that was not given.
        overrides: `key=value` for the iterations, `sft.key=value` for the SFT file; `key=null` takes a key away.
        like: A run file of stage `tpaw`.

    Raises:
        ConfigError: With every problem found.
    """
    from omegaconf import OmegaConf

    given = {name: value for name, value in flags.items() if value is not None}
    options = {name: given.pop(name) for name in list(given) if name in Settings.__dataclass_fields__}
    problems: list[str] = []
    borrowed, borrowed_options = _read_like(like, problems)
    keys, sft_keys = _read_overrides(overrides, problems)
    like_template = borrowed.pop("template", None) if "model" in options else None
    problems += _layout_problems({**keys, **sft_keys}) + _sft_problems(sft_keys, bool(options.get("sft")))
    problems += _key_problems({**given, **keys}) + _key_problems(sft_keys, "sft.")
    options = {**borrowed_options, **options}
    for option, what in (("model", "a folder or a hub name"), ("data", "an entry of dataset_info.json or a file")):
        if not options.get(option):
            problems.append(f"`--{option}` is missing. Give {what}: `--{option} …`.")
    options["objectives"] = _words(options.get("objectives", "tpaw"), "--objective", METHODS, problems)
    options["ablations"] = _words(options.get("ablations", ""), "--ablate", ABLATIONS, problems)
    options["columns"] = _read_columns(options.get("columns"), problems)
    problems += _option_problems(options)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    merged = OmegaConf.to_container(OmegaConf.merge(borrowed, given, keys), resolve=False)
    options["folder"] = Path(options.get("folder") or ".")
    # Without a value a key is as if it was not given: so one of `like` is left out.
    merged, sft_keys = ({key: keys[key] for key in keys if keys[key] is not None} for keys in (merged, sft_keys))
    return Settings(**options, like_template=like_template, keys=merged, sft_keys=sft_keys)


def _read_like(like: str | None, problems: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keys that the new run takes over, and model, data and objective of the old one."""
    if like is None:
        return {}, {}
    try:
        given = read_given([like]) if like.endswith((".yaml", ".yml", ".json")) else {}
    except ConfigError as error:
        problems += error.problems
        return {}, {}
    if given.get("stage") != "tpaw":
        problems.append(
            f"`--like {like}` is {'a run file of stage ' + str(given['stage']) if 'stage' in given else 'no run file'}"
            ", but settings are taken from one of stage `tpaw`, such as yaml/qwen_tpaw_iter0.yaml. Name one."
        )
        return {}, {}
    objective = _objective_of(given)
    players = given.get("tpaw_players") or given.get("model_name_or_path") or ""
    first = players[0] if isinstance(players, list) else str(players).split(",")[0].strip()
    options = {"model": first, "data": given.get("tpaw_prompts"), "objectives": objective}
    left_out = {*LAYOUT, *(() if objective == "tpaw" else WEIGHTING), *SECRETS}
    left_out |= {"resume_from_checkpoint", "overwrite_output_dir"}
    return {key: value for key, value in given.items() if key not in left_out}, options


def _objective_of(given: Mapping[str, Any]) -> Method:
    if given.get("tpaw_objective") == "tspin":
        return "tspin"
    team, eta, gamma = (given.get(key, FIELDS[key].default) for key in WEIGHTING)
    return "spin" if (team, eta, gamma) == (1, 1, 0) else "tpaw"


def _read_overrides(overrides: Sequence[str], problems: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    keys: dict[str, Any] = {}
    sft_keys: dict[str, Any] = {}
    for word in overrides:
        match = OVERRIDE.fullmatch(word)
        if match is None:
            problems.append(
                f"`{word}` is no override. Write `key=value` for a key of the iterations, `sft.key=value` for one of "
                "the SFT file, or see `llamafactory-tpaw init --help` for the flags."
            )
            continue
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"it={match['value']}"]), resolve=False)["it"]
        except (OmegaConfBaseException, YAMLError, ValueError) as error:
            cause = " ".join(str(error).split())
            problems.append(f"`{word}` cannot be read as YAML: {cause}. Put the value in quotes.")
            continue
        (sft_keys if match["sft"] else keys)[match["key"]] = value
    return keys, sft_keys


def _layout_problems(keys: Mapping[str, Any]) -> list[str]:
    secrets = [
        f"`{key}` is not written to a file. Log in with `hf auth login`, or set it where you start a run: `{key}=…`."
        for key in SECRETS
        if key in keys
    ]
    written = [key for key in LAYOUT if key in keys]
    return secrets + [f"`{key}={keys[key]}` is not to be set: `init` writes it. {LAYOUT[key]}" for key in written]


def _sft_problems(sft_keys: Mapping[str, Any], writes_sft: bool) -> list[str]:
    ours = [f"`sft.{key}`" for key in sft_keys if key in FIELDS]
    problems = [f"{', '.join(ours)}: stage `sft` has no such key. Leave `sft.` away."] if ours else []
    if sft_keys and not writes_sft:
        named = ", ".join(f"`sft.{key}`" for key in sft_keys)
        problems.append(f"{named} is for the SFT file, which is written with `--sft` only. Add it, or leave this out.")
    return problems


def _key_problems(keys: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Check names and types; ranges are checked once the run files are there."""
    if not keys:
        return []
    problems = unknown_key_problems(dict(keys))
    unknown = {problem.split("`")[1] for problem in problems}
    for key, value in keys.items():
        if key in FIELDS:
            problem = parse_value(key, value)[1]
            problems += [problem] if problem else []
            continue
        if key in POSITIVE and isinstance(value, int | float) and value <= 0:
            problems.append(f"`{prefix}{key}={value}` must be above 0. Correct the value.")
        if key in unknown or value is None or isinstance(value, list | dict):
            continue
        try:
            read_given([f"--{key}={value}"])
        except ConfigError as error:
            # argparse names the flag with all its spellings, and the message ends with our own advice.
            cause = str(error).rpartition("argument --")[2].partition(": ")[2].partition(". `llamafactory-cli")[0]
            problems.append(
                f"`{prefix}{key}={value}`: {cause}. Correct the value; `llamafactory-cli train -h` lists every key."
            )
    return problems


def _words(text: str, flag: str, allowed: Sequence[str] | Mapping[str, str], problems: list[str]) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    wrong = [word for word in words if word not in allowed]
    if wrong:
        problems.append(
            f"`{flag} {text}` names {', '.join(wrong)}, but takes {', '.join(allowed)}, one or several separated by "
            "commas. Correct it."
        )
    return words


def _read_columns(text: str | None, problems: list[str]) -> dict[str, str]:
    columns = {}
    for part in filter(None, (text or "").split(",")):
        role, equals, column = part.partition("=")
        if role.strip() not in COLUMN_ROLES or not equals or not column.strip():
            problems.append(
                f"`--columns {text}` has {part!r}. Write `--columns prompt=question,response=answer`, or "
                f"`--columns messages=dialogue`; what a column can be: {', '.join(COLUMN_ROLES)}."
            )
            continue
        columns[role.strip()] = column.strip()
    return columns


def _option_problems(options: Mapping[str, Any]) -> list[str]:
    problems = []
    name = options.get("name")
    if name is not None and not NAME.fullmatch(name):
        advice = slug(name)
        problems.append(
            f"`--name {name}` must consist of letters, digits, `_`, `-` and `.`, and begin with a letter or digit: it "
            f"becomes part of file and dataset names.{f' Take `{advice}`, say.' if advice else ' Choose another.'}"
        )
    iterations = options.get("iterations", DEFAULT_ITERATIONS)
    if iterations < 1:
        problems.append(f"`--iterations {iterations}` must be at least 1. Correct it.")
    if not options["objectives"]:
        problems.append(f"`--objective` is empty. Choose of {', '.join(METHODS)}.")
    if options["ablations"] and "tpaw" not in options["objectives"]:
        problems.append(
            f"`--ablate {','.join(options['ablations'])}` leaves out parts of TPAW, but `--objective` is "
            f"{','.join(options['objectives'])}. Add `tpaw` to it, or leave `--ablate` out."
        )
    folder = options.get("folder")
    if folder and Path(folder).exists() and not Path(folder).is_dir():
        problems.append(f"`--folder {folder}` is a file. Name a folder; one that does not exist is made.")
    for separator in ",+":
        if separator in str(options.get("model") or ""):
            problems.append(
                f"`--model {options['model']}` has a `{separator}`, which separates checkpoints in `tpaw_players`. "
                "Rename the folder, or make a symbolic link to it."
            )
    return problems


def slug(text: str) -> str:
    """Return a text with what a name may not have replaced by `_`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")
