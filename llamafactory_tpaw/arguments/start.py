# SPDX-License-Identifier: Apache-2.0
"""What an iteration starts from, θ_t: a model and the adapters on it, by LlamaFactory's own keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


FINETUNING_TYPE = "lora"  # LlamaFactory's default
ADAPTER_CONFIG = "adapter_config.json"
WHOLE_MODELS = ("model*.safetensors*", "pytorch_model*.bin*")


class Start(NamedTuple):
    """θ_t as the keys name it."""

    model: str  # `model_name_or_path`
    adapters: tuple[str, ...] = ()  # `adapter_name_or_path`, merged from left to right; the last one is trained on
    finetuning_type: str = FINETUNING_TYPE
    new_adapter: bool = False  # `create_new_adapter`: all adapters are merged, and another one is trained

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Start:
        """Read it from a run's keys, as a run file or LlamaFactory's arguments have them."""
        given = keys.get("adapter_name_or_path") or ()
        parts = given if isinstance(given, list | tuple) else str(given).split(",")
        return cls(
            str(keys.get("model_name_or_path")),
            tuple(str(part).strip() for part in parts if str(part).strip()),
            str(keys.get("finetuning_type") or FINETUNING_TYPE),
            str(keys.get("create_new_adapter", False)).lower() == "true",
        )

    @property
    def is_lora(self) -> bool:
        """Whether adapters are trained."""
        return self.finetuning_type == "lora"

    @property
    def path(self) -> str:
        """What was saved of θ_t: its last adapter, or the model."""
        return self.adapters[-1] if self.adapters else self.model

    @property
    def spelled(self) -> str:
        """θ_t as `tpaw_players` names it: `model+adapter+adapter`."""
        return "+".join([self.model, *self.adapters])

    def after(self, output_dir: str) -> Start:
        """What the next iteration starts from, once this one has saved its result."""
        if not self.is_lora:
            return self._replace(model=output_dir)
        kept = self.adapters if self.new_adapter else self.adapters[:-1]
        return self._replace(adapters=(*kept, output_dir))

    def parse(self, name: str) -> tuple[str, tuple[str, ...]]:
        r"""Read a player's name, `model+adapter+adapter` or shorter, into its model and the adapters on it.

        An adapter's folder alone has `model_name_or_path` as its base. A folder whose name holds a `+` is one folder.
        """
        if "+" in name and self.is_lora and not Path(name).exists():
            model, *adapters = (part.strip() for part in name.split("+"))
            return model, tuple(adapters)
        alone = is_adapter(name) or (self.is_lora and any(same_place(name, adapter) for adapter in self.adapters))
        return (self.model, (name,)) if alone else (name, ())


def is_adapter(name: str | Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    folder = Path(name)
    whole = (path for pattern in WHOLE_MODELS for path in folder.glob(pattern))
    return (folder / ADAPTER_CONFIG).is_file() and not any(whole)


def same_place(first: str, second: str) -> bool:
    """Whether two names mean one checkpoint."""
    if Path(first).exists() and Path(second).exists():
        return Path(first).resolve() == Path(second).resolve()
    return first.rstrip("/") == second.rstrip("/")
