"""What a model's pass keeps in memory, found from its configuration: it runs without numbers.

Fake tensors have shapes, dtypes and storages but no data, so that a model of any size runs in
seconds. Beside autograd's own tensors a fit keeps what its targets are called with.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from curvedit.models.blocks import Stack, find_stack
from curvedit.models.calling import call
from curvedit.models.linear_maps import find_targets


@dataclass
class Trace:
    """What one batch of a causal language model keeps."""

    leaders: dict[str, str] = field(default_factory=dict)  # target -> the first with its input
    hidden_bytes: int = 0  # of the input of a block
    graph_bytes: int = 0  # of the last block's graph, with the inputs of its targets
    widest_bytes: int = 0  # of the largest output of a map in that block
    blocks: int = 0  # from the lowest that holds a target


def trace(
    modules: nn.Module, targets: list[str], *, rows: int, length: int, dtype: torch.dtype
) -> Trace:
    """Run a model of fake tensors on a batch ``(rows, length)`` of token ids, with targets watched.

    Args:
        modules: The model, on the meta device; it is not changed.
        targets: Names of linear maps.
        rows: Sequences of a batch.
        length: Positions of a sequence.
        dtype: Precision of the weights.

    Raises:
        ValueError: the model has no list of blocks, or cannot be run this way; the message says
            why.
    """
    found, own = Trace(), copy.deepcopy(modules).eval()
    with FakeTensorMode(), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        model = _without_numbers(own, dtype)
        stack = find_stack(model, targets)
        if stack is None:
            raise ValueError("model: expected a list of blocks, got none to plan for")
        found.blocks = len(stack.blocks) - stack.lowest
        try:
            with torch.no_grad(), _watched(model, targets, stack, found):
                call(model, {"input_ids": torch.zeros(rows, length, dtype=torch.long)})
        except _Done:
            return found
        except Exception as error:  # whatever the model raises
            first = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(
                f"model: expected one that takes token ids and runs without numbers, got {first}"
            ) from error
    raise ValueError(f"model: it does not call every block of {stack.name}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging the stack of an op that fails; its error is told."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class _Done(Exception):  # noqa: N818 - not an error: the last block has run
    pass


def _without_numbers(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with fake tensors on the CPU instead of its own."""
    made: dict[int, Any] = {}  # tied ones stay tied
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
        for name, weight in module._parameters.items():
            if weight is not None:
                plain = torch.empty(weight.shape, dtype=dtype, device="cpu")
                made.setdefault(id(weight), nn.Parameter(plain, requires_grad=False))
                module._parameters[name] = made[id(weight)]
    return model


@contextmanager
def _watched(model: nn.Module, targets: list[str], stack: Stack, found: Trace) -> Iterator[None]:
    """Hooks that fill in a trace, and end it after the last block."""
    last = stack.blocks[-1]
    inside = set(last.modules())
    weights = {each.untyped_storage()._cdata for each in model.parameters()}
    kept: dict[int, Tensor] = {}  # by storage, of the last block
    seen: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
    building = ExitStack()  # open while the last block runs

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    def called(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()))
            key = (inputs.untyped_storage()._cdata, inputs.storage_offset(), inputs.shape)
            found.leaders[name] = seen.setdefault(key, (name, inputs))[0]
            if module in inside:
                keep(inputs)

        return hook

    def widest(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.widest_bytes = max(found.widest_bytes, output.nbytes)

    def enter(_: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        found.hidden_bytes = hidden.nbytes
        started = hidden.detach().requires_grad_()
        building.enter_context(torch.enable_grad())
        building.enter_context(saved_tensors_hooks(keep, lambda each: each))
        if args:
            return (started, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": started}

    def leave(*_: Any) -> None:
        building.close()
        found.graph_bytes = sum(each.untyped_storage().nbytes() for each in kept.values())
        raise _Done

    maps: Mapping[str, nn.Module] = find_targets(model, targets)
    handles = [
        each.register_forward_hook(called(name), with_kwargs=True) for name, each in maps.items()
    ]
    handles += [each.register_forward_hook(widest) for each in inside - {last}]
    handles.append(last.register_forward_pre_hook(enter, with_kwargs=True))
    handles.append(last.register_forward_hook(leave))
    try:
        yield
    finally:
        building.close()
        for handle in handles:
            handle.remove()
