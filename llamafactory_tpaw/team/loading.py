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
from .forward import disable_dropout
from .sharding import compute_dtype, precision_of, sharding_of


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
    """A player as its model, with adapters merged into it, and the one that is put on it, if any."""

    whole: tuple[Path, ...]
    apart: Path | None


class PlayerLoader:
    """Loads players for a run, whose tokenizer is already adapted to the template."""

    def __init__(self, run: RunArguments, tokenizer: Any) -> None:
        self.run = run
        self.tokenizer = tokenizer
        self.start = Start.of(vars(run.model) | vars(run.finetuning))
        # A model without the adapter put on it, which stays in memory for the next player, and what it is made of.
        self._held: tuple[PreTrainedModel, tuple[Path, ...]] | None = None

    def stack_of(self, member: Member) -> Stack:
        """Put a player together as the policy is: LlamaFactory merges all adapters but the one that it trains."""
        if self.start.new_adapter or not member.adapters:
            return Stack((member.folder, *member.adapters), None)
        return Stack((member.folder, *member.adapters[:-1]), member.adapters[-1])

    @contextlib.contextmanager
    def open(self, member: Member, following: Member | None = None) -> Iterator[PreTrainedModel]:
        r"""Give a player for some time: frozen, in evaluation mode, on the run's device unless it is in shards.

        Where it and the one `following` are adapters on one model, that stays in memory.
        """
        stack = self.stack_of(member)
        model = self._take(stack)
        yield model
        # After a failure nothing of this is done: the memory goes with the model.
        as_loaded = sharding_of(self.run.training) is None and precision_of(self.run).weights is None
        shared = following is not None and stack.whole == self.stack_of(following).whole
        if self.start.is_lora and as_loaded and shared:
            self._held = (_take_off(model) if stack.apart else model), stack.whole
        del model
        facade.torch_gc()

    def load(self, member: Member) -> PreTrainedModel:
        """Load a player by itself; where it is held in shards, `sharding.shard` brings it to the device."""
        self._held = None
        return self._take(self.stack_of(member))

    def _take(self, stack: Stack) -> PreTrainedModel:
        """Make a player of the model in memory, or load it."""
        from peft import PeftModel

        held, self._held = self._held, None
        if held is not None and held[1] == stack.whole:
            model = held[0]
            if stack.apart is not None:
                model = PeftModel.from_pretrained(model, str(stack.apart), is_trainable=True)
            for weight in model.parameters():  # as LlamaFactory does with an adapter that it trains
                if weight.requires_grad and not self.run.finetuning.pure_bf16:
                    weight.data = weight.data.to(torch.float32)
        else:
            del held
            facade.torch_gc()
            model = self._load(stack)
        model.requires_grad_(False)
        if getattr(model, "is_gradient_checkpointing", False):
            model.gradient_checkpointing_disable()
        disable_dropout(model.eval())
        if sharding_of(self.run.training):
            return model
        dtype = precision_of(self.run).weights
        # As DeepSpeed casts the policy's weights, which leaves buffers alone.
        for weight in model.parameters() if dtype else ():
            if weight.is_floating_point():
                weight.data = weight.data.to(dtype)
        return model.to(self.run.training.device)

    def _load(self, stack: Stack) -> PreTrainedModel:
        model_args = _model_args_of(self.run, *stack.whole, *((stack.apart,) if stack.apart else ()))
        if not self.start.is_lora:
            return facade.load_model(self.tokenizer, model_args, self.run.finetuning, True)
        finetuning_args = copy.copy(self.run.finetuning)
        # Where no adapter stays apart, LlamaFactory adds one to be trained, which is taken off again.
        vars(finetuning_args).update({"create_new_adapter": False} if stack.apart else THROWAWAY)
        model = facade.load_model(self.tokenizer, model_args, finetuning_args, True)
        return model if stack.apart else _take_off(model)


def load_policy(run: RunArguments, tokenizer: Any) -> PreTrainedModel:
    """Load θ_t to be trained. A new adapter begins with the same random numbers whatever was loaded before."""
    set_seed(run.training.seed)
    return facade.load_model(tokenizer, run.model, run.finetuning, True)


def load_generator(run: RunArguments, tokenizer: Any, model: Path, adapters: Sequence[Path]) -> PreTrainedModel:
    """Load a player to generate, as the policy is: an adapter in weights of 16 bits would be rounded away."""
    from peft import PeftModel

    start = Start.of(vars(run.model) | vars(run.finetuning))
    whole = len(adapters) - (start.is_lora and not start.new_adapter and len(adapters) > 0)
    loaded = facade.load_model(tokenizer, _model_args_of(run, model, *adapters[:whole]), run.finetuning, False)
    for adapter in adapters[whole:]:
        loaded = PeftModel.from_pretrained(loaded, str(adapter)).get_base_model()
    return to_device(loaded, run.training.device, compute_dtype(run))


def to_device(model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Bring a model to a device, and its weights to a dtype; a quantized one is where LlamaFactory put it."""
    if getattr(model, "quantization_method", None) is not None:
        return model
    return model.to(device=device, dtype=dtype)


def _model_args_of(run: RunArguments, model: Path, *adapters: Path) -> Any:
    """LlamaFactory's model arguments for another checkpoint than the policy."""
    model_args = copy.copy(run.model)
    model_args.model_name_or_path = str(model)
    model_args.adapter_name_or_path = [str(adapter) for adapter in adapters] or None
    return model_args


def _take_off(model: Any) -> PreTrainedModel:
    """Take an adapter off the model that it was put on, and the whole modules that came with it."""
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # peft itself would leave the adapter's copy in the model
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.original_module)
    model = model.unload()
    if hasattr(model, "peft_config"):  # which peft leaves behind, and warns of when the next adapter is put on
        del model.peft_config
    return model
