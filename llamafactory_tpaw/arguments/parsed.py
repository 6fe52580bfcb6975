# SPDX-License-Identifier: Apache-2.0
"""LlamaFactory's five groups of arguments, parsed and checked by LlamaFactory itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..plugin import facade


if TYPE_CHECKING:
    from collections.abc import Mapping

# Keys of distributed training: what runs in one process of its own (generation, scoring) does without them.
DISTRIBUTED_KEYS = ("deepspeed", "fsdp", "fsdp_config")


class RunArguments(NamedTuple):
    """The arguments of a run; `finetuning` holds the `tpaw_*` keys too."""

    model: Any
    data: Any
    training: Any
    finetuning: Any
    generating: Any


def parse_single_process(given: Mapping[str, Any]) -> RunArguments:
    r"""Parse a run's keys for work in one process that does not train.

    Args:
        given: What the user gave.

    Returns:
        The arguments as training would see them, but for the keys of distributed training and of resuming.
    """
    values = {key: value for key, value in given.items() if key not in DISTRIBUTED_KEYS}
    values["overwrite_output_dir"] = True  # nothing is written there, so what is in it does not matter
    return RunArguments(*facade.get_train_args(values))
