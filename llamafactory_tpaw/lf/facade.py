# SPDX-License-Identifier: Apache-2.0
"""LlamaFactory's functions and classes that the package uses, imported when first asked for.

The rest of the package imports this module and writes `facade.load_model(...)`; nothing else names LlamaFactory.
"""

import importlib
from typing import Any

from ..errors import ConfigError
from .status import PACKAGE, lacks


# Our name -> (LlamaFactory's module, its name there).
NAMES: dict[str, tuple[str, str]] = {
    "BOARD_CONFIG": ("extras.constants", "LLAMABOARD_CONFIG"),
    "DEFAULT_TEMPLATE": ("extras.constants", "DEFAULT_TEMPLATE"),
    "LogCallback": ("train.callbacks", "LogCallback"),
    "SaveProcessorCallback": ("train.callbacks", "SaveProcessorCallback"),
    "SUPPORTED_MODELS": ("extras.constants", "SUPPORTED_MODELS"),
    "TEMPLATES": ("data.template", "TEMPLATES"),
    "TRAINING_STAGES": ("extras.constants", "TRAINING_STAGES"),
    "TRAIN_ARGS": ("hparams.parser", "_TRAIN_ARGS"),
    "align_dataset": ("data.converter", "align_dataset"),
    "create_custom_optimizer": ("train.trainer_utils", "create_custom_optimizer"),
    "create_custom_scheduler": ("train.trainer_utils", "create_custom_scheduler"),
    "create_modelcard_and_push": ("train.trainer_utils", "create_modelcard_and_push"),
    "download_from_other_hub": ("extras.misc", "try_download_model_from_other_hub"),
    "gen_loss_plot": ("extras.ploting", "gen_loss_plot"),
    "get_dataset_converter": ("data.converter", "get_dataset_converter"),
    "get_dataset_list": ("data.parser", "get_dataset_list"),
    "get_logger": ("extras.logging", "get_logger"),
    "get_save_dir": ("webui.common", "get_save_dir"),
    "get_template_and_fix_tokenizer": ("data.template", "get_template_and_fix_tokenizer"),
    "get_train_args": ("hparams.parser", "get_train_args"),
    "load_aligned_dataset": ("data.loader", "_load_single_dataset"),
    "load_config": ("model.loader", "load_config"),
    "load_model": ("model.loader", "load_model"),
    "load_tokenizer": ("model.loader", "load_tokenizer"),
    "parse_template": ("data.template", "parse_template"),
    "plot_loss": ("extras.ploting", "plot_loss"),
    "save_board_config": ("webui.common", "save_args"),
    "save_run_file": ("webui.common", "save_cmd"),
    "tool_utils": ("data", "tool_utils"),
    "torch_gc": ("extras.misc", "torch_gc"),
}


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module_name, attribute = NAMES[name]
    full_name = f"{PACKAGE}.{module_name}"
    try:
        module = importlib.import_module(full_name)
        value = getattr(module, attribute)
    except AttributeError:
        raise ConfigError(lacks(f"`{full_name}.{attribute}`")) from None
    except ModuleNotFoundError as error:
        # Only LlamaFactory's own modules are LlamaFactory's fault.
        if error.name is None or not full_name.startswith(error.name):
            raise
        raise ConfigError(lacks(f"`{full_name}`")) from None
    globals()[name] = value
    return value
