"""Finds a model's stack of blocks by its structure, and can bypass them.

The stack is the outermost ``nn.ModuleList`` with the most targets, and of equals the largest.
Whether each block passes its output unchanged to the next is only seen when they are called.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from curvedit.models.linear_maps import find_targets


@dataclass(frozen=True)
class Stack:
    """The blocks of a model, and the lowest one that contains a target."""

    name: str
    blocks: Sequence[nn.Module]
    lowest: int  # an index; len(blocks) if all targets lie outside the blocks


def find_stack(model: nn.Module, targets: Sequence[str]) -> Stack | None:
    """Return the model's stack of blocks, or None if it has no non-empty ``nn.ModuleList``."""
    candidates = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and not isinstance(module, ParametrizationList)
        and len(module) > 0
    }
    outer = [
        name for name in candidates if not any(name.startswith(f"{other}.") for other in candidates)
    ]
    if not outer:
        return None

    def worth(candidate: str) -> tuple[int, int]:
        inside = sum(target.startswith(f"{candidate}.") for target in targets)
        return inside, candidates[candidate]

    name = max(outer, key=worth)
    blocks = list(model.get_submodule(name).children())
    inside = [
        int(target[len(name) + 1 :].split(".")[0])
        for target in targets
        if target.startswith(f"{name}.")
    ]
    lowest = min(inside, default=len(blocks))
    return Stack(name, blocks, lowest)


def block_maps(model: nn.Module) -> dict[str, nn.Module]:
    """The linear maps inside the model's stack of blocks; all of them if it has none."""
    maps = find_targets(model, "*")
    stack = find_stack(model, list(maps))
    if stack is None:
        return maps
    return {name: each for name, each in maps.items() if name.startswith(f"{stack.name}.")}


def hidden_of(output: Any) -> Tensor:
    """Return the hidden state in a block's output: the output itself, or a tuple's first item."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def bypassed(blocks: Sequence[nn.Module], passed: Any) -> Iterator[None]:
    """Inside, every block returns ``passed`` instead of running."""
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
