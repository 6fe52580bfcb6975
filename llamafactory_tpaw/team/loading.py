# SPDX-License-Identifier: Apache-2.0
"""Players in memory: loaded as LlamaFactory loads the policy, frozen; adapters are switched on one model."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import set_seed

from ..arguments.start import Start
from ..lf import facade
from .engine import place, precision_of, sharding_of
from .forward import freeze


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

    from ..arguments.parsed import RunArguments
    from .members import Member

# For an adapter that is taken off again: as small as can be, and without parts of the model.
THROWAWAY = {
    "create_new_adapter": True, "lora_rank": 1, "use_dora": False, "use_rslora": False, "additional_target": None,
}  # fmt: skip


class Stack(NamedTuple):
    """How a player's adapters are put on its model: some are merged into it, the last one may stay apart."""

    model: Path
    merged: tuple[Path, ...]
    apart: Path | None


class _Held(NamedTuple):
    """A model that stays in memory for the next player, with the adapters that are merged into it."""

    model: PreTrainedModel
    stack: Stack


class PlayerLoader:
    r"""Loads players for a run.

    Args:
        run: The run's arguments.
        tokenizer: The tokenizer, already adapted to the template.
    """

    def __init__(self, run: RunArguments, tokenizer: Any) -> None:
        self.run = run
        self.tokenizer = tokenizer
        self.start = Start.of(vars(run.model) | vars(run.finetuning))
        self._held: _Held | None = None

    def stack_of(self, member: Member) -> Stack:
        """Put a player together as the policy is: LlamaFactory merges all adapters but the one that it trains."""
        if self.start.new_adapter or not member.adapters:
            return Stack(member.folder, member.adapters, None)
        return Stack(member.folder, member.adapters[:-1], member.adapters[-1])

    def numerics_of(self, member: Member) -> dict[str, str]:
        """What changes a player's log-probs because not all weights are trained."""
        return method_numerics(self.run, len(member.adapters))

    @contextlib.contextmanager
    def open(self, member: Member, following: Member | None = None) -> Iterator[PreTrainedModel]:
        r"""Give a player for some time: frozen, in evaluation mode, on the run's device unless it is in shards.

        Args:
            member: The player.
            following: Who is opened next: where both are adapters upon one model, it stays in memory.
        """
        stack = self.stack_of(member)
        model = self._take(stack)
        yield model
        # After a failure nothing of this is done: the memory goes with the model.
        if following is not None and self._can_become(stack, self.stack_of(following)):
            self._held = _Held(take_off(model) if stack.apart else model, stack)
        del model
        facade.torch_gc()

    def load(self, member: Member) -> PreTrainedModel:
        """Load a player by itself; it stays with the caller.

        Where players are held in shards it is not on the device yet: `engine.shard` brings it there.
        """
        self._held = None
        return self._take(self.stack_of(member))

    def _take(self, stack: Stack) -> PreTrainedModel:
        """Make a player of the model in memory, or load it."""
        held, self._held = self._held, None
        if held is None or not self._can_become(held.stack, stack):
            del held
            facade.torch_gc()
            model = self._load(stack)
        else:
            model = held.model
            for adapter in stack.merged[len(held.stack.merged) :]:
                model = _forget(put_on(model, adapter).merge_and_unload())
            if stack.apart is not None:
                model = put_on(model, stack.apart, trained=True)
                self._upcast(model)
        return place(freeze(model), self.run)

    def _can_become(self, stack: Stack, following: Stack) -> bool:
        """Whether the model of a player can serve the next one: no more than that one's adapters is merged into it."""
        whole = sharding_of(self.run.training) is None and precision_of(self.run).weights is None
        same = stack.model == following.model and following.merged[: len(stack.merged)] == stack.merged
        return self.start.is_lora and whole and same

    def _load(self, stack: Stack) -> PreTrainedModel:
        adapters = (*stack.merged, *((stack.apart,) if stack.apart else ()))
        finetuning_args = copy.copy(self.run.finetuning)
        # Where no adapter stays apart, LlamaFactory adds one to be trained, which is taken off again.
        vars(finetuning_args).update({"create_new_adapter": False} if stack.apart else THROWAWAY)
        model_args = model_args_of(self.run, stack.model, adapters)
        if not self.start.is_lora:
            return facade.load_model(self.tokenizer, model_args, self.run.finetuning, True)
        model = facade.load_model(self.tokenizer, model_args, finetuning_args, True)
        return model if stack.apart else take_off(model)

    def _upcast(self, model: PreTrainedModel) -> None:
        """Do as LlamaFactory does with an adapter that it trains."""
        if self.run.finetuning.pure_bf16:
            return
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.to(torch.float32)


def load_policy(run: RunArguments, tokenizer: Any) -> PreTrainedModel:
    """Load θ_t to be trained. A new adapter begins with the same random numbers whatever was loaded before."""
    set_seed(run.training.seed)
    return facade.load_model(tokenizer, run.model, run.finetuning, True)


def load_generator(
    run: RunArguments, tokenizer: Any, model: Path, adapters: Sequence[Path], dtype: torch.dtype
) -> PreTrainedModel:
    r"""Load a player to generate, as LlamaFactory loads a model for that: with all its adapters merged.

    Args:
        run: The run's arguments.
        tokenizer: The tokenizer, already adapted to the template.
        model: Folder of the model.
        adapters: Folders of the adapters upon it, in order.
        dtype: What is computed in; quantized weights stay as they are.
    """
    loaded = facade.load_model(tokenizer, model_args_of(run, model, adapters), run.finetuning, False)
    return to_device(loaded, run.training.device, dtype)


def to_device(model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Bring a model to a device, and its weights to a dtype; a quantized one is where LlamaFactory put it."""
    if getattr(model, "quantization_method", None) is not None:
        return model
    return model.to(device=device, dtype=dtype)


def model_args_of(run: RunArguments, model: Path, adapters: Sequence[Path] = ()) -> Any:
    """LlamaFactory's model arguments for another checkpoint than the policy."""
    model_args = copy.copy(run.model)
    model_args.model_name_or_path = str(model)
    model_args.adapter_name_or_path = [str(adapter) for adapter in adapters] or None
    return model_args


def put_on(model: PreTrainedModel, adapter: Path, *, trained: bool = False) -> Any:
    """Put an adapter on a model."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter), is_trainable=trained)


def take_off(model: Any) -> PreTrainedModel:
    """Take an adapter off the model that it was put on, and the whole modules that came with it."""
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # peft itself would leave the adapter's copy in the model
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.original_module)
    return _forget(model.unload())


def _forget(model: PreTrainedModel) -> PreTrainedModel:
    """Remove what peft leaves behind, at which it would warn when the next adapter is put on."""
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model


def method_numerics(run: RunArguments, adapters: int) -> dict[str, str]:
    r"""What changes a player's log-probs because not all weights are trained; nothing in full training.

    Args:
        run: The run's arguments.
        adapters: How many the player has.
    """
    start, model_args = Start.of(vars(run.model) | vars(run.finetuning)), run.model
    found = {}
    cast = precision_of(run).weights is not None  # then all of them are in one dtype, whatever is trained
    if start.finetuning_type == "freeze" and not cast and not run.finetuning.pure_bf16:
        keys = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules", "use_llama_pro")
        trained = ", ".join(f"{key} {getattr(run.finetuning, key)}" for key in keys)
        found["weights"] = f"as in the checkpoint, float32 where trained: {trained}"
    if start.is_lora and not cast:
        found["weights"] = "as in the checkpoint"
    if adapters:
        found["adapters"] = "merged" if start.new_adapter else "the last one apart"
    if model_args.quantization_bit:
        method = getattr(model_args.quantization_method, "value", model_args.quantization_method)
        found["quantization"] = (
            f"{model_args.quantization_bit} bit by {method}, {model_args.quantization_type}, double "
            f"{model_args.double_quantization}, computed in {model_args.compute_dtype}"
        )
    return found
