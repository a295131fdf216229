"""Backward passes: a batch in, the observer's calls and gradients out, block by block or at once.

In the streamed pass only a few blocks' graphs are in memory at a time, one at the least:

1. Run forward, keeping the input of each block, and the graphs of the last ones.
2. Run what follows the last block (norm, head, loss) in pieces, so that the logits of all positions
   never exist at once.
3. Go through the blocks in reverse, running each of the others again with a graph, down to the
   lowest block that contains a target.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from curvedit.data import Batch
from curvedit.meter import beat
from curvedit.models import Stack, bypassed, call, hidden_of, pieces
from curvedit.passes.loss import Loss
from curvedit.passes.observer import Observation, Observer


class NotStreamableError(Exception):
    """The model does not pass a single tensor from block to block; the message says where."""


class _Stop(Exception):  # noqa: N818 - not an error: ends the forward pass after the last block
    pass


@dataclass
class _BlockRun:
    """The arguments that one block was called with; for the last blocks also their output."""

    args: tuple[Any, ...]  # without the hidden state
    kwargs: dict[str, Any]  # likewise
    positional: bool  # whether the hidden state was the first positional argument or a keyword
    hidden: Tensor  # the block's input
    output: Tensor | None = None  # with its graph
    observation: Observation | None = None

    def arguments(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the call's arguments with another hidden state."""
        if self.positional:
            return (hidden, *self.args), self.kwargs
        return self.args, {**self.kwargs, "hidden_states": hidden}


def whole_backward(model: nn.Module, batch: Batch, objective: Loss, observer: Observer) -> None:
    """Show the observer one batch's activations and gradients, with the whole model's graph.

    Raises:
        NoGradientError: the loss does not depend on a target.
    """
    with torch.enable_grad(), observer.observing(batch) as observation:
        end, at_end = objective.differentiate(call(model, batch.copied().inputs), batch)
    objective.require_valid()
    if observation.leaves and end.requires_grad:
        torch.autograd.grad(end, observation.leaves, at_end, allow_unused=True)
    observation.close()


def streamed_backward(
    model: nn.Module,
    stack: Stack,
    batch: Batch,
    objective: Loss,
    observer: Observer,
    *,
    inputs_on: torch.device | None,
    logits_bytes: int,
    kept: int = 1,
    weighed: bool = False,
) -> int:
    """Show the observer one batch's activations and gradients, a few blocks' graphs at a time.

    Args:
        model: In evaluation mode, with parameters that require no gradient.
        stack: The model's blocks.
        batch: On the model's device.
        objective: The loss.
        observer: Attached to the targets.
        inputs_on: The device that keeps block inputs until the backward pass; None leaves them
            where they are.
        logits_bytes: Bound on the memory of logits and what the loss makes of them.
        kept: Number of the last blocks whose graphs are kept rather than built again.
        weighed: Find out what the last block's graph holds.

    Returns:
        That, in bytes; 0 if it is not asked for.

    Raises:
        NotStreamableError: the blocks do not pass a single tensor along; nothing was accumulated.
    """
    forward = _Forward(stack, batch, observer, inputs_on, kept, weighed=weighed)
    runs, last = _run_blocks(model, stack, batch, observer, forward)
    top = hidden_of(last).detach()
    gradient = _run_tail(model, stack, batch, objective, observer, last, top, logits_bytes)
    del last, top
    for number in range(len(stack.blocks) - 1, stack.lowest - 1, -1):
        run = runs.pop()
        beat()
        if gradient is None:
            raise RuntimeError("streaming: expected a gradient for every targeted block")
        below = number > stack.lowest
        if run.output is None or run.observation is None:
            run.hidden = (
                run.hidden.to(gradient.device, non_blocking=True).detach().requires_grad_(below)
            )
            args, kwargs = run.arguments(run.hidden)
            with torch.enable_grad(), observer.observing(batch) as run.observation:
                run.output = hidden_of(stack.blocks[number](*args, **kwargs))
            del args, kwargs
        sources = ([run.hidden] if below else []) + run.observation.leaves
        gradients: tuple[Tensor | None, ...] = (None,)
        if sources:  # none in the lowest block if a batch calls no target there, such as an expert
            gradients = torch.autograd.grad(run.output, sources, gradient, allow_unused=True)
        gradient = gradients[0] if below else None
        run.observation.close()
        del run, sources, gradients
    return sum(forward.saved.values())


def _run_blocks(
    model: nn.Module, stack: Stack, batch: Batch, observer: Observer, forward: "_Forward"
) -> tuple[list[_BlockRun], Any]:
    """Run forward; return the calls of the blocks from the lowest up, and the last one's output."""
    with torch.no_grad(), forward.building, ExitStack() as hooks:
        for number, block in enumerate(stack.blocks):
            before = partial(forward.before, number)
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            after = partial(forward.after, number)
            hooks.callback(block.register_forward_hook(after).remove)
        for name, module in observer.targets.items():
            if not name.startswith(f"{stack.name}."):
                hooks.callback(module.register_forward_pre_hook(_refuse(name)).remove)
        try:
            call(model, batch.inputs)
        except _Stop:
            return forward.runs, forward.outputs[-1]
    raise NotStreamableError(f"the model does not call every block of {stack.name}")


class _Forward:
    """Hooks that keep each block's arguments, and build the last blocks' graphs."""

    def __init__(
        self,
        stack: Stack,
        batch: Batch,
        observer: Observer,
        inputs_on: torch.device | None,
        kept: int,
        *,
        weighed: bool,
    ) -> None:
        self.weighed = weighed
        self.stack, self.batch, self.observer, self.inputs_on = stack, batch, observer, inputs_on
        self.runs: list[_BlockRun] = []
        self.outputs: list[Any] = []
        self.final = len(stack.blocks) - 1
        self.first_kept = max(0, self.final + 1 - max(1, kept))
        self.building = ExitStack()  # open while one of the last blocks builds its graph
        self.saved: dict[int, int] = {}  # bytes that the last block's graph holds, by address
        weights = stack.blocks[self.final].parameters()
        self.weights = {each.untyped_storage().data_ptr() for each in weights}

    def before(
        self, number: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        hidden = args[0] if args else kwargs.get("hidden_states")
        name = self.stack.name
        if not isinstance(hidden, Tensor):
            raise NotStreamableError(f"block {number} of {name} is not called with a hidden state")
        if number != len(self.outputs):
            raise NotStreamableError(f"the blocks of {name} are not called once each, in order")
        if number and not _same(hidden, hidden_of(self.outputs[number - 1])):
            raise NotStreamableError(
                f"the output of block {number - 1} of {name} is changed before the next block"
            )
        if number:
            self.outputs[number - 1] = None
        if number < self.stack.lowest:
            return None
        rest = {key: value for key, value in kwargs.items() if args or key != "hidden_states"}
        run = _BlockRun(args[1:], rest, bool(args), hidden)
        self.runs.append(run)
        if number >= self.first_kept:  # the last one always, since the backward pass begins with it
            run.hidden = hidden.detach().requires_grad_(number > self.stack.lowest)
            self.building.enter_context(torch.enable_grad())
            run.observation = self.building.enter_context(self.observer.observing(self.batch))
            if number == self.final and self.weighed:
                self.building.enter_context(saved_tensors_hooks(self._count, lambda each: each))
            return run.arguments(run.hidden)
        if self.inputs_on is not None:
            run.hidden = _parked(hidden, self.inputs_on)
        return None

    def after(self, number: int, _: nn.Module, __: Any, output: Any) -> None:
        self.building.close()
        first = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(first, Tensor):
            raise NotStreamableError(
                f"block {number} of {self.stack.name} returns {type(output).__name__}"
            )
        self.outputs.append(output)
        if number >= self.first_kept and self.runs:
            self.runs[-1].output = hidden_of(output)
        if number == self.final:
            raise _Stop

    def _count(self, tensor: Tensor) -> Tensor:
        """Note what a graph keeps, but for parameters."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.saved[storage.data_ptr()] = storage.nbytes()
        return tensor


def _parked(hidden: Tensor, place: torch.device) -> Tensor:
    """A copy on another device; on the host in memory that a GPU copies to and from by itself."""
    if place.type == "cpu" and hidden.is_cuda:
        held = torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=True)
        return held.copy_(hidden, non_blocking=True)
    return hidden.to(place, non_blocking=True)


def _refuse(name: str) -> Any:
    def hook(*_: Any) -> None:
        raise NotStreamableError(f"the target {name} lies before the blocks")

    return hook


def _run_tail(
    model: nn.Module,
    stack: Stack,
    batch: Batch,
    objective: Loss,
    observer: Observer,
    last: Any,
    top: Tensor,  # (B, …, d): the last block's output
    logits_bytes: int,
) -> Tensor | None:
    """Run norm, head and loss in pieces, forward and backward.

    Returns the gradient at the last block's output, or None if no block needs it.
    """
    wanted = stack.lowest < len(stack.blocks)
    gradient = torch.zeros_like(top) if wanted else None
    for start, stop, left, right in pieces(model, batch, top.shape[1], logits_bytes):
        part = batch.rows(start, stop)
        rows = top[start:stop].requires_grad_(wanted)
        passed = (rows, *last[1:]) if isinstance(last, tuple) else rows
        slicing = (
            {}
            if right is None
            else {"logits_to_keep": torch.arange(left, right, device=top.device)}
        )
        with (
            torch.enable_grad(),
            bypassed(stack.blocks, passed),
            observer.observing(part, left, right) as observation,
        ):
            output = call(model, part.inputs, **slicing)
            end, at_end = objective.differentiate(output, part, start=left, stop=right)
            del output
        sources = ([rows] if wanted else []) + observation.leaves
        if end.requires_grad:  # a custom loss may not, if no position in the piece contributes
            gradients = torch.autograd.grad(end, sources, at_end, allow_unused=True)
            if gradient is not None and gradients[0] is not None:
                gradient[start:stop] += gradients[0]
        observation.close()
    objective.require_valid()
    return gradient


def _same(first: Tensor, second: Tensor) -> bool:
    if first.device != second.device:
        return first.shape == second.shape  # the model moved it between devices
    return first.data_ptr() == second.data_ptr() and first.shape == second.shape
