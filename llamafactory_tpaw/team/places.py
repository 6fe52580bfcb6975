# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint is: a folder here, or a hub's, which is downloaded or found in the hub's cache."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..lf import facade


HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What is downloaded of a player: config, tokenizer, tpaw.json and weights; `.bin` only where there is nothing else.
SMALL_FILES = ["*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja"]
SAFE_WEIGHTS = ["*.safetensors"]
BIN_WEIGHTS = ["pytorch_model*.bin", "adapter_model.bin"]
CODE = ["*.py"]


def place_of(name: str, whose: str, model_args: Any) -> Path:
    r"""Return the folder of a checkpoint; a hub name is downloaded (or found in the hub's cache) first.

    LlamaFactory's switches for ModelScope and openMind hold here, too.

    Args:
        name: A folder or a hub name.
        whose: The player, for messages.
        model_args: LlamaFactory's.

    Raises:
        DataError: If the hub does not give it.
    """
    if Path(name).exists() or not HUB_NAME.fullmatch(name):
        return Path(name)
    other_hub = copy.copy(model_args)
    other_hub.model_name_or_path = name
    downloaded = Path(facade.download_from_other_hub(other_hub))
    if downloaded.is_dir():
        return downloaded
    code = CODE if getattr(model_args, "trust_remote_code", False) else []
    folder = _download(name, whose, model_args, [*SMALL_FILES, *code, *SAFE_WEIGHTS])
    if not any(folder.glob("*.safetensors")):
        folder = _download(name, whose, model_args, [*SMALL_FILES, *code, *BIN_WEIGHTS])
    return folder


def _download(name: str, whose: str, model_args: Any, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=model_args.model_revision,
            cache_dir=model_args.cache_dir,
            token=model_args.hf_hub_token,
            allow_patterns=patterns,
        )
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{whose} is `{name}`, which is no folder here and cannot be had from the hub: {cause}. Correct the path."
        ) from error
    return Path(folder)
