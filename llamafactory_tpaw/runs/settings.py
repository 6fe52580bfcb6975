# SPDX-License-Identifier: Apache-2.0
"""What a user gives to `init`: flags, `key=value` overrides and a run file to take settings from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..arguments.fields import FIELDS, parse_value
from ..errors import ConfigError
from ..lf.given import read_given, unknown_key_problems, value_problems


METHODS = ("tpaw", "spin", "tspin", "iris")
ABLATIONS = ("trw", "mpw", "team")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Keys that `init` writes itself, and secrets, which are written to no file.
LAYOUT = (
    "model_name_or_path", "adapter_name_or_path", "dataset", "tpaw_prompts", "output_dir", "tpaw_objective",
    "tpaw_iteration", "tpaw_players", "tpaw_proto", "stage", "do_train",
)  # fmt: skip
SECRETS = ("hf_hub_token", "ms_hub_token", "om_hub_token")
WEIGHTING = ("tpaw_team_size", "tpaw_eta", "tpaw_gamma")  # (1, 1, 0) makes SPIN of TPAW
ONE_FOLDER = ("resume_from_checkpoint", "overwrite_output_dir")


@dataclass(frozen=True)
class Settings:
    """What is asked for."""

    model: str  # a folder or a hub name
    data: str  # an entry of dataset_info.json or a file
    folder: Path  # where yaml/ and data/ are written
    name: str | None = None  # prefix of run files and datasets; None for one made of model and data
    objectives: tuple[str, ...] = ("tpaw",)
    ablations: tuple[str, ...] = ()  # parts of TPAW to leave out, each in a separate family
    iterations: int = 4
    sft: bool = False  # whether theta_0 is still to be trained from `model`
    saves: str | None = None  # folder of the runs; None for LlamaBoard's
    columns: Mapping[str, str] = field(default_factory=dict)  # which column of a file is what
    keys: Mapping[str, Any] = field(default_factory=dict)  # of the iterations and, where they fit, of SFT
    sft_keys: Mapping[str, Any] = field(default_factory=dict)  # of the SFT file alone

    @property
    def dataset_dir(self) -> str:
        """Folder of `dataset_info.json`, relative to `folder`."""
        return str(self.keys.get("dataset_dir", "data"))


def read_settings(flags: Mapping[str, Any], overrides: Sequence[str] = (), like: str | None = None) -> Settings:
    """Join what was given; an override counts more than a flag, a flag more than the run file of `like`.

    `flags` are attributes of `Settings` as texts, and keys of run files; None is a flag that was not given. Overrides
    are `key=value`, `sft.key=value` for the SFT file alone; `key=null` takes a key away. Problems are raised together.
    """
    from omegaconf import OmegaConf

    problems = [f"`{word}` is no override. Write `key=value`." for word in overrides if "=" not in word]
    keys, options = _read_like(like, problems)
    for name, value in flags.items():
        if value is not None:
            (options if name in Settings.__dataclass_fields__ else keys)[name] = value
    given = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=False)
    sft_keys = given.pop("sft") if isinstance(given.get("sft"), dict) else {}
    keys = {key: value for key, value in (keys | given).items() if value is not None}
    problems += _key_problems(keys) + _key_problems(sft_keys)
    if sft_keys and (not options.get("sft") or any(key in FIELDS for key in sft_keys)):
        problems.append("`sft.` is for LlamaFactory's keys of the SFT file. Add `--sft`, or leave the prefix out.")
    for option, flag, allowed in (("objectives", "objective", METHODS), ("ablations", "ablate", ABLATIONS)):
        text = options.get(option) or ""
        options[option] = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
        if set(options[option]) - set(allowed) or (option == "objectives" and not options[option]):
            problems.append(f"`--{flag} {text}` takes {', '.join(allowed)}, separated by commas. Correct it.")
    pairs = [part.partition("=") for part in filter(None, (options.get("columns") or "").split(","))]
    options["columns"] = {role.strip(): column.strip() for role, _, column in pairs}
    options["folder"] = Path(options.get("folder") or ".")
    problems += _option_problems(options)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return Settings(**options, keys=keys, sft_keys=sft_keys)


def _read_like(like: str | None, problems: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keys that the new run takes over, and model, data and objective of the old one."""
    if like is None:
        return {}, {"objectives": "tpaw"}
    given = read_given([like])
    if given.get("stage") != "tpaw":
        problems.append(f"`--like {like}` is no run file of stage `tpaw`. Name one, as yaml/qwen_tpaw_iter0.yaml.")
    team, eta, gamma = (given.get(key, FIELDS[key].default) for key in WEIGHTING)
    objective = "spin" if (team, eta, gamma) == (1, 1, 0) else given.get("tpaw_objective", "tpaw")
    players = given.get("tpaw_players") or given.get("model_name_or_path") or ""
    first = players[0] if isinstance(players, list) else str(players).split(",")[0].strip()
    left_out = {*LAYOUT, *SECRETS, *ONE_FOLDER, *(() if objective == "tpaw" else WEIGHTING)}
    options = {"model": first, "data": given.get("tpaw_prompts"), "objectives": objective}
    return {key: value for key, value in given.items() if key not in left_out}, options


def _key_problems(keys: dict[str, Any]) -> list[str]:
    problems = [f"`{key}={keys[key]}` is written by `init` itself. Leave it out." for key in LAYOUT if key in keys]
    problems += [f"`{key}` is not written to a file. Log in with `hf auth login`." for key in SECRETS if key in keys]
    problems += [parse_value(key, keys[key])[1] for key in keys if key in FIELDS]
    return [*filter(None, problems), *unknown_key_problems(keys), *value_problems(keys)]


def _option_problems(options: Mapping[str, Any]) -> list[str]:
    model, name = str(options.get("model") or ""), options.get("name")
    wrong = {
        "`--model` is missing. Give a folder or a hub name.": not model,
        "`--data` is missing. Give an entry of dataset_info.json or a file.": not options.get("data"),
        "`--ablate` leaves out parts of TPAW. Add `tpaw` to `--objective`, or leave `--ablate` out.": (
            options["ablations"] and "tpaw" not in options["objectives"]
        ),
        "`--columns` must be as `prompt=question,response=answer`. Correct it.": "" in options["columns"].values(),
        f"`--name {name}` must be letters, digits, `_`, `-` and `.`. Take another.": (
            name is not None and not NAME.fullmatch(name)
        ),
        f"`--iterations {options.get('iterations')}` must be at least 1. Correct it.": (
            int(options.get("iterations", 1)) < 1
        ),
        f"`--model {model}` has a `,` or `+`, which `tpaw_players` uses. Rename the folder.": set(",+") & set(model),
    }
    return [problem for problem, holds in wrong.items() if holds]
