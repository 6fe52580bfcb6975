# SPDX-License-Identifier: Apache-2.0
"""LlamaFactory's five groups of arguments, parsed and checked by LlamaFactory itself."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError
from ..lf import facade


if TYPE_CHECKING:
    from collections.abc import Mapping

# What runs in a single process (generation, scoring) does without the keys of distributed training.
DISTRIBUTED_KEYS = ("deepspeed", "fsdp", "fsdp_config")


class RunArguments(NamedTuple):
    r"""The arguments of a run; `finetuning` holds the `tpaw_*` keys too.

    `engine` has the keys of distributed training where this process works without them for a training that has them.
    """

    model: Any
    data: Any
    training: Any
    finetuning: Any
    generating: Any
    engine: Mapping[str, Any] = MappingProxyType({})


def parse_single_process(given: Mapping[str, Any]) -> RunArguments:
    """Parse a run's keys for one process that does not train: as training, but without distribution and resuming."""
    values = {key: value for key, value in given.items() if key not in DISTRIBUTED_KEYS}
    values["overwrite_output_dir"] = True  # nothing is written there, so what is in it does not matter
    engine = {key: given[key] for key in DISTRIBUTED_KEYS if given.get(key)}
    return RunArguments(*facade.get_train_args(values), engine)


def parse_reading(given: Mapping[str, Any]) -> tuple[Any, Any]:
    """Parse LlamaFactory's model and data arguments alone, on no device; what it refuses is a `ConfigError`."""
    groups = []
    for kind in facade.TRAIN_ARGS[:2]:
        names = {spec.name for spec in dataclasses.fields(kind) if spec.init}
        try:
            groups.append(kind(**{key: value for key, value in given.items() if key in names}))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"LlamaFactory refuses the settings: {error} Correct the key.") from error
    return groups[0], groups[1]
