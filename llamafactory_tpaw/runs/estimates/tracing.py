# SPDX-License-Identifier: Apache-2.0
"""Runs real code on tensors without data, and counts the bytes that they would hold at each moment.

Floating-point tensors are torch's fake tensors: they have shapes and dtypes, go through autograd, autocast and
checkpointing like any other, but hold no data. Token ids, labels and masks are real, since what is computed with them
(which positions count, where a sequence ends) decides shapes. So the package's own forward pass over any architecture
can be measured without its weights and in seconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Step(NamedTuple):
    """Bytes of a forward and backward pass, beyond weights and what was there before.

    Attributes:
        activations: Most bytes held at a time by what is neither weight nor gradient.
        gradients: Bytes of the gradients at the end.
        peak: Most bytes of both together.
    """

    activations: int
    gradients: int
    peak: int


class ByteTracer(TorchDispatchMode):
    r"""Inside `with tracer:`, floating-point tensors hold no data and every tensor's bytes are counted.

    Attributes:
        live: Bytes of the tensors that are alive, gradients left out.
        gradients: Bytes of gradients that `watch_gradients` saw.
        peak: Most of both together since the last `reset_peak`.
        activations: Most of `live` since then.
        flops: Floating-point operations since the last `reset_work`: of matrix products and attention.
        calls: Operations that were started since then.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._seen: weakref.WeakKeyDictionary[torch.UntypedStorage, _Storage] = weakref.WeakKeyDictionary()
        self.live = self.gradients = self.peak = self.activations = 0
        self.flops = self.calls = 0
        self._awaited = 0
        self._first_half = (0, 0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation: on fake tensors where one is among its inputs or a floating-point one is made."""
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        self.calls += 1
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return self._answer(args[0])
        if self._without_data(func, args, kwargs):
            with self._fake:
                out = func(*args, **kwargs)
        else:
            out = func(*args, **kwargs)
        self._count_flops(func, args, kwargs, out)
        for tensor in _tensors_in(out):
            self._count(tensor.untyped_storage())
        return out

    def reset_peak(self) -> None:
        """Forget the most bytes so far."""
        self.peak, self.activations = self.live + self.gradients, self.live

    def reset_work(self) -> None:
        """Begin to count operations anew."""
        self.flops = self.calls = 0

    def watch_gradients(self, model: torch.nn.Module) -> None:
        """Count the gradients of a model apart from everything else as soon as they are there."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._move_gradient)

    def await_half(self, model: torch.nn.Module) -> None:
        """Begin anew, and once more when half of the weights have their gradients; see `halves`."""
        self.reset_peak()
        self._awaited = sum(parameter.requires_grad for parameter in model.parameters()) // 2 + 1
        self._first_half = (0, 0)

    def halves(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """`activations` and `peak` before and after that moment."""
        return self._first_half, (self.activations, self.peak)

    def _move_gradient(self, parameter: torch.Tensor) -> None:
        storage = parameter.grad.untyped_storage()
        self._count(storage)
        record = self._seen[storage]
        if not record.is_gradient:
            record.is_gradient = True
            self.live -= record.size
            self.gradients += record.size
            self._awaited -= 1
            if self._awaited == 0:
                self._first_half = (self.activations, self.peak)
                self.reset_peak()

    @staticmethod
    def _answer(tensor: torch.Tensor) -> bool:
        """Let every question about data (is it finite, do two results agree) be answered with yes."""
        if tensor.dtype == torch.bool:
            return True
        raise NotImplementedError("a tensor without data was asked for a number")

    def _count_flops(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        elif func is torch.ops.aten.linear.default:  # as it arrives in inference mode
            self.flops += 2 * args[0].numel() * args[1].shape[0]
        elif func.overloadpacket is ATTENTION:
            self.flops += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif func.overloadpacket is ATTENTION_BACKWARD:
            self.flops += sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))

    @staticmethod
    def _without_data(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        tensors = [*_tensors_in(args), *_tensors_in(kwargs.values())]
        if tensors:
            return any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if kwargs.get("dtype") is not None:
            return kwargs["dtype"].is_floating_point
        name = func.overloadpacket.__name__
        if name == "full":
            return isinstance(args[1], float)
        if name == "arange":
            return any(isinstance(item, float) for item in args)
        return name not in ("randint", "randperm")

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        record = _Storage(storage.nbytes())
        self._seen[storage] = record
        self.live += record.size
        self.activations = max(self.activations, self.live)
        self.peak = max(self.peak, self.live + self.gradients)
        weakref.finalize(storage, self._release, record)

    def _release(self, record: _Storage) -> None:
        if record.is_gradient:
            self.gradients -= record.size
        else:
            self.live -= record.size


def _tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """Find the tensors in what an operation takes or gives."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, Iterable) and not isinstance(values, str):
        for value in values:
            yield from _tensors_in(value)


class _Storage:
    """Bytes of a storage and what they are."""

    __slots__ = ("is_gradient", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.is_gradient = False


def trace_step(tracer: ByteTracer, model: torch.nn.Module, forward: Callable[[], torch.Tensor]) -> Step:
    """Run a forward and a backward pass; see `trace_phases`."""
    return most_of(trace_phases(tracer, model, forward))


def trace_phases(
    tracer: ByteTracer, model: torch.nn.Module, forward: Callable[[], torch.Tensor]
) -> tuple[Step, Step, Step]:
    r"""Run a forward and a backward pass.

    Args:
        tracer: The tracer under which the model was made.
        model: Its gradients are dropped afterwards. `watch_gradients` was called for it.
        forward: Gives the tensor whose sum is differentiated.

    Returns:
        What was needed forward, backward until half of the weights had their gradients, and from then on.
    """
    before = tracer.live
    tracer.reset_peak()
    with tracer:
        loss = forward().sum()
        most = [(tracer.activations, tracer.peak)]
        tracer.await_half(model)
        loss.backward()
    most += tracer.halves()
    gradients = tracer.gradients
    model.zero_grad(set_to_none=True)
    forward_step, first, second = (Step(active - before, gradients, peak - before) for active, peak in most)
    return forward_step, first, second


def most_of(steps: Sequence[Step]) -> Step:
    """Phases of one pass together."""
    return Step(max(step.activations for step in steps), steps[-1].gradients, max(step.peak for step in steps))


def trace_peak(tracer: ByteTracer, work: Callable[[], Any]) -> tuple[int, Any]:
    """Run something without gradients: most bytes beyond what was there before, and what it returned."""
    before = tracer.live
    tracer.reset_peak()
    with tracer, torch.no_grad():
        result = work()
    return tracer.activations - before, result
