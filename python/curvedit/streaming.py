"""Backward through a stack of blocks that holds one block's graph at a time.

Forward without a graph, keeping each block's input (and the graphs of the topmost blocks, where
memory is given for them); then the part after the last block (norm,
head, loss) alone and in pieces, so that the logits of all positions never exist together; then
the blocks in reverse, each run again with a graph where none was kept. Stops at the lowest block with a target.

The stack is found by structure: the outermost ``nn.ModuleList`` with most parameters whose
members hand their output to the next unchanged.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from curvedit.batches import Batch
from curvedit.calls import call, pieces
from curvedit.collector import Collector, Observation
from curvedit.objective import Objective

GRAPH_BYTES = 1 << 29  # default memory for graphs of whole blocks kept from the forward pass


class NotStreamableError(Exception):
    """The model does not pass one tensor from block to block; the message says where."""


class _Stop(Exception):  # noqa: N818 - not an error: ends a forward pass after the last block
    pass


@dataclass
class Stack:
    """The blocks of a model, and the lowest one that has a target."""

    name: str
    blocks: Sequence[nn.Module]
    lowest: int
    graph_bytes: float | None = None  # of one block, per element of its input; measured on the first batch


@dataclass(frozen=True)
class Limits:
    """Where a streamed pass keeps what it needs again, and how much of it."""

    inputs_on: torch.device | None  # where block inputs wait; None leaves them where they are
    logits_bytes: int  # bound on the memory of logits and what the loss makes of them
    graph_bytes: int  # for whole blocks' graphs kept from the forward pass


@dataclass
class _BlockRun:
    """One block's forward pass: what to repeat it with, and its graph where that is kept."""

    args: tuple[Any, ...]  # without the hidden state
    kwargs: dict[str, Any]
    positional: bool  # whether the hidden state comes first among args, or by name
    hidden: Tensor  # the block's input
    output: Tensor | None = None
    observation: Observation | None = None

    def arguments(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments with another hidden state."""
        if self.positional:
            return (hidden, *self.args), self.kwargs
        return self.args, {**self.kwargs, "hidden_states": hidden}


def find_stack(model: nn.Module, targets: Sequence[str]) -> Stack | None:
    """The model's block list, or None if it has none or no target is at or above a block of it."""
    candidates = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0
    }
    outer = [name for name in candidates if not any(name.startswith(f"{other}.") for other in candidates)]
    if not outer:
        return None
    name = max(outer, key=lambda candidate: candidates[candidate])
    blocks = list(model.get_submodule(name).children())
    inside = [int(target[len(name) + 1 :].split(".")[0]) for target in targets if target.startswith(f"{name}.")]
    lowest = min(inside, default=len(blocks))
    return Stack(name, blocks, lowest)


def streamed_backward(
    model: nn.Module, stack: Stack, batch: Batch, objective: Objective, collector: Collector, limits: Limits
) -> None:
    """Let the collector see one batch's activations and gradients, one block's graph at a time.

    Args:
        model: In evaluation mode, parameters without gradients.
        stack: Its blocks.
        batch: On the model's device.
        objective: The loss.
        collector: Attached to the targets.
        limits: Of memory.

    Raises:
        NotStreamableError: the stack does not pass one tensor along; nothing was accumulated.
    """
    runs, last = _run_blocks(model, stack, batch, collector, limits)
    top = _hidden(last).detach()
    gradient = _run_tail(model, stack, batch, objective, collector, last, top, limits.logits_bytes)
    del last, top
    for number in range(len(stack.blocks) - 1, stack.lowest - 1, -1):
        run = runs.pop()
        if gradient is None:
            raise RuntimeError("streaming: expected a gradient for every targeted block")
        below = number > stack.lowest
        if run.output is None or run.observation is None:
            run.hidden = run.hidden.to(gradient.device, non_blocking=True).detach().requires_grad_(below)
            args, kwargs = run.arguments(run.hidden)
            with torch.enable_grad(), collector.observing(batch) as run.observation:
                run.output = _hidden(stack.blocks[number](*args, **kwargs))
        sources = ([run.hidden] if below else []) + run.observation.leaves
        gradients = torch.autograd.grad(run.output, sources, gradient, allow_unused=True)
        gradient = gradients[0] if below else None
        run.observation.close()
        del run, gradients, sources


def _run_blocks(
    model: nn.Module, stack: Stack, batch: Batch, collector: Collector, limits: Limits
) -> tuple[list[_BlockRun], Any]:
    """Forward: the blocks' runs from the lowest on, the topmost with their graphs, and the last one's output."""
    runs: list[_BlockRun] = []
    outputs: list[Any] = []
    graphs_from = len(stack.blocks)
    building = ExitStack()

    def before(number: int) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs.get("hidden_states")
            if not isinstance(hidden, Tensor):
                raise NotStreamableError(f"block {number} of {stack.name} is not called with a tensor first")
            if number != len(outputs):
                raise NotStreamableError(f"the blocks of {stack.name} are not called once each, in order")
            if number and not _same(hidden, _hidden(outputs[number - 1])):
                raise NotStreamableError(f"the output of block {number - 1} of {stack.name} is changed before the next")
            if number:
                outputs[number - 1] = None
            if number < stack.lowest:
                return None
            rest = {key: value for key, value in kwargs.items() if args or key != "hidden_states"}
            run = _BlockRun(args[1:], rest, bool(args), hidden)
            runs.append(run)
            nonlocal graphs_from
            if number == stack.lowest and limits.graph_bytes:
                if stack.graph_bytes is None:
                    stack.graph_bytes = _graph_bytes(block, run, batch, collector) / hidden.numel()
                kept = int(limits.graph_bytes / max(1.0, stack.graph_bytes * hidden.numel()))
                graphs_from = max(stack.lowest, len(stack.blocks) - kept)
            if number < graphs_from:
                if limits.inputs_on is not None:
                    run.hidden = hidden.to(limits.inputs_on, non_blocking=True)
                return None
            run.hidden = hidden.detach().requires_grad_(number > stack.lowest)
            building.enter_context(torch.enable_grad())
            run.observation = building.enter_context(collector.observing(batch))
            return run.arguments(run.hidden)

        return hook

    def after(number: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) and not (isinstance(output, tuple) and isinstance(output[0], Tensor)):
                raise NotStreamableError(f"block {number} of {stack.name} returns {type(output).__name__}")
            if number >= graphs_from:
                building.close()
                runs[-1].output = _hidden(output)
                output = (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()
            outputs.append(output)
            if number == len(stack.blocks) - 1:
                raise _Stop
            return output

        return hook

    with torch.no_grad(), building, ExitStack() as hooks:
        for number, block in enumerate(stack.blocks):
            handle = block.register_forward_pre_hook(before(number), with_kwargs=True)
            hooks.callback(handle.remove)
            hooks.callback(block.register_forward_hook(after(number)).remove)
        for name, module in collector.targets.items():
            if not name.startswith(f"{stack.name}."):
                handle = module.register_forward_pre_hook(_refuse(name))
                hooks.callback(handle.remove)
        try:
            call(model, batch.inputs)
        except _Stop:
            return runs, outputs[-1]
    raise NotStreamableError(f"the model does not call every block of {stack.name}")


def _graph_bytes(block: nn.Module, run: _BlockRun, batch: Batch, collector: Collector) -> int:
    """Memory of one block's graph and its targets' inputs, seen in a forward pass of its own."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    args, kwargs = run.arguments(run.hidden.detach().requires_grad_())
    watching = saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.enable_grad(), watching, collector.observing(batch) as observation:
        output = block.forward(*args, **kwargs)
        for _, inputs in observation.seen.values():
            note(inputs)
        del output
    return sum(kept.values())


def _refuse(name: str) -> Any:
    def hook(*_: Any) -> None:
        raise NotStreamableError(f"the target {name} lies before the blocks")

    return hook


def _run_tail(
    model: nn.Module,
    stack: Stack,
    batch: Batch,
    objective: Objective,
    collector: Collector,
    last: Any,
    top: Tensor,  # (B, …, d): the last block's output
    logits_bytes: int,
) -> Tensor | None:
    """Norm, head and loss in pieces; the gradient at the last block's output, or None if no block needs it."""
    wanted = stack.lowest < len(stack.blocks)
    gradient = torch.zeros_like(top) if wanted else None
    for start, stop, left, right in pieces(model, batch, top.shape[1], logits_bytes):
        part = batch.rows(start, stop)
        rows = top[start:stop].requires_grad_(wanted)
        passed = (rows, *last[1:]) if isinstance(last, tuple) else rows
        slicing = {} if right is None else {"logits_to_keep": torch.arange(left, right, device=top.device)}
        with (
            torch.enable_grad(),
            _bypassed(stack.blocks, passed),
            collector.observing(part, left, right) as observation,
        ):
            output = call(model, part.inputs, **slicing)
            end, at_end = objective.differentiate(output, part, start=left, stop=right)
            del output
        sources = ([rows] if wanted else []) + observation.leaves
        if end.requires_grad:  # a custom loss does not where nothing in the piece counts
            gradients = torch.autograd.grad(end, sources, at_end, allow_unused=True)
            if gradient is not None and gradients[0] is not None:
                gradient[start:stop] += gradients[0]
        observation.close()
    return gradient


@contextmanager
def _bypassed(blocks: Sequence[nn.Module], passed: Any) -> Iterator[None]:
    """Every block returns ``passed`` instead of running."""
    missing = object()
    saved = [block.__dict__.get("forward", missing) for block in blocks]
    for block in blocks:
        block.forward = lambda *_, **__: passed
    try:
        yield
    finally:
        for block, forward in zip(blocks, saved, strict=True):
            if forward is missing:
                del block.forward
            else:
                block.forward = forward


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _same(first: Tensor, second: Tensor) -> bool:
    if first.device != second.device:
        return first.shape == second.shape  # moved between devices on the way
    return first.data_ptr() == second.data_ptr() and first.shape == second.shape
