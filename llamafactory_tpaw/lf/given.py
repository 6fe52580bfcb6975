# SPDX-License-Identifier: Apache-2.0
"""What the user gave to `train`, as a plain dict, and which of its keys have no meaning or a wrong value."""

import argparse
import contextlib
import dataclasses
import difflib
import json
import math
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ConfigError


YAML_ENDINGS = (".yaml", ".yml")
FILE_ENDINGS = (*YAML_ENDINGS, ".json")
STAGE, PREFIX = "tpaw", "tpaw_"
# The key of a handed file that holds what its reader needs beside the settings.
HANDED = "tpaw_handed"
# How the YAML parser calls text that comes from no file.
YAML_SOURCE = '"<unicode string>"'
OVERRIDE = re.compile(r"[^-=\s][^=]*=")
STAGE_IN_TEXT = re.compile(r"""^\s*["']?stage["']?\s*:\s*["']?tpaw\b""", re.MULTILINE)
KEYS_HINT = "`llamafactory-cli train -h` lists every key."
AT_LEAST_ONE = ("cutoff_len", "gradient_accumulation_steps", "per_device_train_batch_size")
Args = list[str] | dict[str, Any] | None


def read_given(args: Args) -> dict[str, Any]:
    r"""Return what the user gave, and nothing else: no defaults, no unknown key dropped.

    Args:
        args: A dict; or a run file and `key=value` overrides; or flags such as `--key value`. None is empty.

    Raises:
        ConfigError: If the run file is missing or does not parse, or a flag's value has the wrong type.
    """
    if isinstance(args, dict):
        return {str(key): value for key, value in args.items()}
    if not args:
        return {}
    return _read_file(args[0], args[1:]) if args[0].endswith(FILE_ENDINGS) else _read_flags(args)


def read_if_ours(args: Args) -> dict[str, Any] | None:
    r"""Return what the user gave where it asks for stage `tpaw`, else None, reading the run file once.

    Raises:
        ConfigError: If it cannot be read and asks for the stage.
    """
    if isinstance(args, list) and args and not args[0].endswith(FILE_ENDINGS):
        return read_given(args) if _last_flag(args, "--stage") == STAGE else None
    try:
        given = read_given(args)
    except ConfigError:
        asked = [word for word in args if word.startswith("stage=")]
        text = Path(args[0]).read_text(encoding="utf-8", errors="replace") if Path(args[0]).is_file() else ""
        if asked[-1:] == ["stage=tpaw"] or (not asked and STAGE_IN_TEXT.search(text)):
            raise
        return None  # LlamaFactory says what is wrong with it
    return given if given.get("stage") == STAGE else None


def take_handed(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the settings and what was handed with them by the process that started this one; None for nothing."""
    settings = {key: value for key, value in given.items() if key != HANDED}
    return settings, given.get(HANDED)


@contextlib.contextmanager
def handed_file(settings: Mapping[str, Any], **handed: Any) -> Iterator[str]:
    r"""Write settings to a file that a process started by this one is given as its run file.

    Args:
        settings: The keys, which may hold secrets: only this user can read the file.
        handed: What else the process needs to know; where there is any, it must be a process of this package.

    Yields:
        The file's path; it is removed at the end. JSON is YAML too, so LlamaFactory can read it.
    """
    with tempfile.TemporaryDirectory(prefix="llamafactory-tpaw-") as folder:
        path = Path(folder) / "plan.yaml"
        if handed:
            handed |= {"cwd": os.getcwd(), "folder": folder}
        path.write_text(json.dumps({**settings, **({HANDED: handed} if handed else {})}), encoding="utf-8")
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


def value_problems(given: Mapping[str, Any], checked: Collection[str] = ()) -> list[str]:
    r"""Return a message for each of LlamaFactory's numbers, switches and choices that is given as something else.

    LlamaFactory takes the values of a run file as they are; a wrong one ends the run where it is used, hours later.

    Args:
        given: What the user gave.
        checked: Keys that have a check of their own, beside `stage`, `finetuning_type` and the `tpaw_*` ones.
    """
    from transformers.hf_argparser import string_to_bool

    kinds: dict[Any, Any] = {int: int, float: float, string_to_bool: bool}
    known = {
        action.dest: tuple(action.choices) if action.choices else kinds[action.type]
        for action in _train_parser()._actions
        if action.choices or action.type in kinds
    }
    elsewhere = {*checked, "stage", "finetuning_type"}
    problems = []
    for key, value in given.items():
        if value is None or key in elsewhere or key.startswith(PREFIX):
            continue
        wanted = _wanted(known.get(key), value)
        if wanted is None and key in AT_LEAST_ONE and isinstance(value, int) and value < 1:
            wanted = "at least 1"
        if wanted is not None:
            problems.append(f"`{key}` is {value!r}, but must be {wanted}. {_correction(known.get(key), value)}")
    return problems


def _wanted(kind: type | tuple[str, ...] | None, value: Any) -> str | None:
    """What a value would have to be, where it is not."""
    if isinstance(kind, tuple):
        return f"one of {', '.join(map(str, kind))}" if isinstance(value, str) and value not in kind else None
    if kind is bool:
        return None if isinstance(value, int) else "true or false"
    if kind is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return "a whole number" if kind is int and value != int(value) else None
    return "a whole number" if kind is int else "a number"


def _correction(kind: type | tuple[str, ...] | None, value: Any) -> str:
    if isinstance(kind, tuple):
        nearest = difflib.get_close_matches(value, map(str, kind), n=1)
        return f"Did you mean `{nearest[0]}`?" if nearest else "Choose one of them."
    with contextlib.suppress(ValueError):
        if isinstance(value, str) and math.isfinite(float(value)):
            return "Write it without quotes."
    return "Correct the value."


def is_true(given: Mapping[str, Any], key: str) -> bool:
    """Whether a switch is on, by a bool or by its word."""
    return str(given.get(key, False)).lower() == "true"


def is_on(variable: str) -> bool:
    """Read a switch of the environment as LlamaFactory does."""
    return os.environ.get(variable, "0").lower() in ("true", "y", "1")


def _read_file(path: str, overrides: list[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"The run file {path} does not exist (looked in {Path.cwd()}). Check the path.")
    try:
        text = file.read_text(encoding="utf-8")
        settings = OmegaConf.create(json.loads(text)) if path.endswith(".json") else OmegaConf.create(text)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"The run file {path} is not UTF-8 in line {line}. Save it as UTF-8.") from None
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        cause = _one_line(error).replace(YAML_SOURCE, path)
        raise ConfigError(f"The run file {path} cannot be read: {cause}. Correct the file.") from None
    if not OmegaConf.is_dict(settings):
        raise ConfigError(
            f"The run file {path} holds a list or a bare value, but must hold `key: value` lines. Correct the file."
        )
    malformed = [item for item in overrides if not OVERRIDE.match(item)]
    if any(item.endswith(YAML_ENDINGS) for item in malformed):
        raise ConfigError(
            f"{' '.join(malformed)}: one run file is read here, and {path} is given already. Give one at a time; "
            "`llamafactory-tpaw run` takes several."
        )
    if malformed:
        raise ConfigError(
            f"`{' '.join(malformed)}` after {path} cannot be read as overrides, which are written `key=value`. Write "
            "`tpaw_eta=4.0` for `--tpaw_eta 4.0`."
        )
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(settings, OmegaConf.from_cli(overrides)), resolve=False)
    except (ValueError, TypeError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"The overrides {' '.join(overrides)!r} of {path} cannot be read: "
            f"{_one_line(error).replace(f' in {YAML_SOURCE}', '')}. Write them as `key=value`."
        ) from None
    return {str(key): value for key, value in merged.items()}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _last_flag(args: list[str], flag: str) -> str | None:
    value = None
    for index, item in enumerate(args):
        name, equals, inline = str(item).partition("=")
        if name == flag:
            value = inline if equals else next(iter(args[index + 1 : index + 2]), None)
    return value


def _train_parser() -> Any:
    """LlamaFactory's own parser of `train`, whose errors are ours."""
    from transformers import HfArgumentParser

    from . import facade

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"The command line cannot be read: {message}. {KEYS_HINT}")

    return Parser(list(facade.TRAIN_ARGS), add_help=False)


def _read_flags(args: list[str]) -> dict[str, Any]:
    """Read flags as LlamaFactory does; one that it does not know becomes a key, so that it can be named."""
    parser = _train_parser()
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    namespace, rest = parser.parse_known_args(args)
    found: dict[str, Any] = {}
    current = None
    for item in rest:
        if item.startswith("--"):
            current, equals, value = item[2:].partition("=")
            found[current] = value if equals else True
        elif current is None:
            found[item] = True
        else:
            found[current] = item if found[current] is True else f"{found[current]} {item}"
    return vars(namespace) | found
