# SPDX-License-Identifier: Apache-2.0
"""What the user gave to `train`, as a plain dict, and which of its keys have no meaning or a wrong value."""

import argparse
import contextlib
import dataclasses
import difflib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError


YAML_ENDINGS = (".yaml", ".yml")
STAGE, PREFIX = "tpaw", "tpaw_"
# The key of a handed file that holds what its reader needs beside the settings.
HANDED = "tpaw_handed"
OVERRIDE = re.compile(r"[^-=\s][^=]*=")
KEYS_HINT = "`llamafactory-cli train -h` lists every key."


def read_given(args: list[str] | dict[str, Any] | None) -> dict[str, Any]:
    r"""Return what the user gave, and nothing else: no defaults, no unknown key dropped.

    It is a dict; or a run file and `key=value` overrides; or flags such as `--key value`. None is empty.
    """
    if isinstance(args, dict):
        return {str(key): value for key, value in args.items()}
    if not args:
        return {}
    return _read_file(args[0], args[1:]) if args[0].endswith(YAML_ENDINGS) else _read_flags(args)


def take_handed(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the settings and what was handed with them by the process that started this one; None for nothing."""
    settings = {key: value for key, value in given.items() if key != HANDED}
    return settings, given.get(HANDED)


@contextlib.contextmanager
def handed_file(settings: Mapping[str, Any], **handed: Any) -> Iterator[str]:
    r"""Write settings to a file, for as long as the block lasts, that a process is given as its run file.

    Only this user can read it, for keys may hold secrets. A process to which more is handed must be of this package.
    """
    with tempfile.TemporaryDirectory(prefix="llamafactory-tpaw-") as folder:
        path = Path(folder) / "plan.yaml"
        if handed:
            settings = {**settings, HANDED: handed | {"cwd": os.getcwd(), "folder": folder}}
        # Quoted, since OmegaConf reads `1e-5` as a number; and no JSON, whose halves of an emoji it cannot read.
        path.write_text(yaml.safe_dump({**settings}, default_style='"'), encoding="utf-8")
        yield str(path)


def unknown_key_problems(given: Mapping[str, Any]) -> list[str]:
    r"""Return a message for each key that nothing reads, naming the nearest key there is.

    With LlamaFactory's ALLOW_EXTRA_ARGS only the keys that begin with `tpaw_` are looked at.
    """
    from . import facade

    known = {spec.name for kind in facade.TRAIN_ARGS for spec in dataclasses.fields(kind) if spec.init}
    problems = []
    for key in given:
        ours = key.startswith(PREFIX)
        if key in known or (not ours and is_on("ALLOW_EXTRA_ARGS")):
            continue
        choices = sorted(name for name in known if name.startswith(PREFIX) or not ours)
        nearest = difflib.get_close_matches(key, choices, n=1, cutoff=0.0 if ours else 0.6)
        advice = f"; did you mean `{nearest[0]}`?" if nearest else ". Correct or remove it;"
        problems.append(f"`{key}` is not a key of `train`{advice} {KEYS_HINT}")
    return problems


def value_problems(given: Mapping[str, Any]) -> list[str]:
    r"""Return a message for each of LlamaFactory's numbers, switches and choices that is given as something else.

    LlamaFactory takes the values of a run file as they are; a wrong one ends the run where it is used, hours later.
    """
    from transformers.hf_argparser import string_to_bool

    parser = _train_parser()
    kinds = (int, float, string_to_bool)
    numbers = {action.dest: action for action in parser._actions if action.type in kinds}
    words = {action.dest: action for action in parser._actions if action.choices}
    problems = []
    for key, value in given.items():
        with contextlib.suppress(TypeError, ValueError):
            if rb"\u0000" not in json.dumps(value, ensure_ascii=False, allow_nan=False).replace(r"\\", "").encode():
                continue
        problems.append(f"`{key}` holds NaN, infinity or what no text file can hold. Correct it.")
    for key, value in given.items():
        action = numbers.get(key) or (words.get(key) if isinstance(value, str) else None)
        # The others have checks that know the stage.
        if action is None or value is None or key in ("stage", "finetuning_type") or key.startswith(PREFIX):
            continue
        try:
            parser._get_values(action, [str(value)])
        except argparse.ArgumentError as error:
            problems.append(f"`{key}: {value}` is wrong: {error.message.rstrip('.')}. Correct it.")
        else:
            if key in numbers and isinstance(value, str):
                problems.append(f"`{key}` is the text {value!r}. Write it without quotes.")
    return problems


def is_true(given: Mapping[str, Any], key: str) -> bool:
    """Whether a switch is on, by a bool or by its word."""
    return str(given.get(key, False)).lower() == "true"


def is_on(variable: str) -> bool:
    """Read a switch of the environment as LlamaFactory does."""
    return os.environ.get(variable, "0").lower() in ("true", "y", "1")


def is_first_process() -> bool:
    """Whether this one does what is done once in a run: rank 0, or the command of the first of several nodes."""
    several = any(os.environ.get(name, "1") not in ("0", "1") for name in ("NNODES", "MAX_NNODES"))
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", *(["NODE_RANK"] if several else [])))


def _read_file(path: str, overrides: list[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    malformed = " ".join(item for item in overrides if not OVERRIDE.match(item))
    if malformed:
        raise ConfigError(
            f"`{malformed}` after {path} cannot be read as overrides. Write `tpaw_eta=4.0` for `--tpaw_eta 4.0`; "
            "several run files are for `llamafactory-tpaw run`."
        )
    wrong = AssertionError, OSError, RecursionError, TypeError, ValueError, yaml.YAMLError, OmegaConfBaseException
    try:
        settings = OmegaConf.create(Path(path).read_text(encoding="utf-8"))
        if not OmegaConf.is_dict(settings):
            raise ValueError("it holds a list or a bare value, but must hold `key: value` lines")
        merged = OmegaConf.to_container(OmegaConf.merge(settings, OmegaConf.from_cli(overrides)), resolve=False)
    except wrong as error:
        cause = " ".join(str(error).split()).replace(' in "<unicode string>"', "") or "it holds no settings"
        read = " with ".join(filter(None, [f"The run file {path}", " ".join(overrides)]))
        raise ConfigError(f"{read} cannot be read: {cause}. Correct what is wrong there.") from None
    return {str(key): value for key, value in merged.items()}


def _train_parser() -> Any:
    """LlamaFactory's own parser of `train`."""
    from transformers import HfArgumentParser

    from . import facade

    return HfArgumentParser(list(facade.TRAIN_ARGS), add_help=False, exit_on_error=False)


def _read_flags(args: list[str]) -> dict[str, Any]:
    """Read flags as LlamaFactory does; one that it does not know becomes a key, so that it can be named."""
    parser = _train_parser()
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    try:
        namespace, rest = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise ConfigError(f"The command line cannot be read: {error}. {KEYS_HINT}") from None
    unknown = [word for word in rest if word.startswith("--")] or rest
    return vars(namespace) | {word.removeprefix("--").partition("=")[0]: True for word in unknown}
