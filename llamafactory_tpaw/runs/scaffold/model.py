# SPDX-License-Identifier: Apache-2.0
"""What is to be known of the model: its config and its tokenizer, from a folder or a hub, without its weights."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...arguments.start import is_adapter
from ...errors import ConfigError, DataError
from ...lf import facade
from ...lf.given import is_true
from ...team.checkpoint import check_checkpoint_complete
from ...team.players import HUB_NAME
from .settings import Settings


BOARD_FOLDER = re.compile(r"(?:^|/)saves/(?P<model>[^/]+)/[^/]+/[^/]+/?$")
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "spiece.model", "*.tiktoken")
UNKNOWN_MODEL = "Custom"  # as LlamaBoard calls a model that is not in its list


@dataclass(frozen=True)
class Model:
    r"""A model without its weights.

    Attributes:
        path: As run files name it: relative where it moves along with the run.
        is_local: Whether it is a folder.
        config: Its config, of transformers.
        tokenizer: Its tokenizer, as it is saved.
        known_as: LlamaFactory's name of it, if it has one.
        board_name: The name of its folder under `saves/`.
        parameters: How many, or None where that cannot be told.
    """

    path: str
    is_local: bool
    config: Any
    tokenizer: Any
    known_as: str | None
    board_name: str
    parameters: int | None

    @property
    def text_config(self) -> Any:
        """The part of the config that is about text."""
        return self.config.get_text_config()

    @property
    def max_positions(self) -> int | None:
        """Most tokens of a sequence, if the config says so."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer brings one; most base models do not."""
        return bool(self.tokenizer.chat_template)


def find_model(settings: Settings) -> Model:
    r"""Read config and tokenizer of `--model`.

    Raises:
        ConfigError: If the folder is that of an adapter.
        DataError: If the folder lacks something, or the hub does not give the model.
    """
    place = Path(settings.model).expanduser()
    is_local = place.exists() or not HUB_NAME.fullmatch(settings.model)
    if is_local:
        _check_folder(place, settings.model)
    source = str(place) if is_local else settings.model
    config, tokenizer = _load(source, settings, is_local)
    known_as = _known_name(settings.model, is_local)
    board = BOARD_FOLDER.search(place.resolve().as_posix()) if is_local else None
    return Model(
        path=_written_path(place, settings.folder) if is_local else settings.model,
        is_local=is_local,
        config=config,
        tokenizer=tokenizer,
        known_as=known_as,
        board_name=board["model"] if board else known_as or _tail(settings.model, is_local),
        parameters=_count_parameters(config),
    )


def _tail(model: str, is_local: bool) -> str:
    return UNKNOWN_MODEL if is_local else model.rpartition("/")[2]


def _check_folder(place: Path, given: str) -> None:
    if is_adapter(place):
        raise ConfigError(
            f"`--model {given}` is an adapter, but a whole model is asked for. Merge it into its model with "
            "`llamafactory-cli export` and give the result. Or give the model, and name the adapter in each run file "
            "by `adapter_name_or_path` and in `tpaw_players` as `model+adapter`."
        )
    problems = check_checkpoint_complete(place)
    # transformers would make an empty tokenizer of the model's type.
    if not problems and not any(file for pattern in TOKENIZER_FILES for file in place.glob(pattern)):
        problems = [f"{place} holds no tokenizer. Save the model's tokenizer there, too."]
    if problems:
        raise DataError([f"`--model {given}`: {problem}" for problem in problems])


def _load(source: str, settings: Settings, is_local: bool) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    keys = settings.model_keys
    options = {
        "trust_remote_code": is_true(keys, "trust_remote_code"),
        "cache_dir": keys.get("cache_dir"),
        "revision": keys.get("model_revision", "main"),
    }
    what = "config"
    try:
        config = AutoConfig.from_pretrained(source, **options)
        what = "tokenizer"
        return config, AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # the hub's client and the tokenizers raise errors of many kinds
        cause = " ".join(str(error).split()).rstrip(".")
        if is_local:
            advice = "Save the checkpoint again, together with its tokenizer."
        else:
            offline = " HF_HUB_OFFLINE is set here." if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
            advice = (
                "It is no folder here, so it was looked for on the hub: correct the name, connect to the hub (`hf "
                f"auth login` where the model is gated), or download it and give its folder.{offline}"
            )
        raise DataError(f"`--model {settings.model}`: its {what} cannot be read: {cause}. {advice}") from error


def _known_name(model: str, is_local: bool) -> str | None:
    """LlamaFactory's name of a hub's model, or of a folder that is called like one."""
    folder = Path(model).expanduser().resolve().name.lower()
    for name, sources in facade.SUPPORTED_MODELS.items():
        if is_local and folder in (name.lower(), *(path.rpartition("/")[2].lower() for path in sources.values())):
            return name
        if not is_local and model in sources.values():
            return name
    return None


def _written_path(place: Path, folder: Path) -> str:
    inside, base = place.resolve(), folder.resolve()
    return inside.relative_to(base).as_posix() if inside.is_relative_to(base) else inside.as_posix()


def _count_parameters(config: Any) -> int | None:
    """Build the model without memory and count."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ImportError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    return sum(weight.numel() for weight in model.parameters())
