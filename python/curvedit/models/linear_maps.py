"""Finds a model's linear maps by name pattern, and gives their weights.

The package writes a linear map as ``y = W a`` with ``W (d_out, d_in)``. ``nn.Linear`` stores ``W``;
the ``Conv1D`` of Hugging Face GPT-2 stores its transpose. :func:`weight_of` hides the difference.
"""

import difflib
import fnmatch
import hashlib
import itertools
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from curvedit.models.wrapping import wrapping_prefix

_BRACE = re.compile(r"\{([^{}]*)\}")


def is_conv1d(module: nn.Module) -> bool:
    """Whether ``module`` is a Hugging Face ``Conv1D``, a linear map stored as ``(d_in, d_out)``."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__ == "Conv1D"
        and isinstance(weight, Tensor)
        and weight.ndim == 2
        and getattr(module, "nf", None) == weight.shape[1]
    )


def is_linear_map(module: nn.Module) -> bool:
    """Whether ``module`` computes ``y = W a`` with a dense floating-point ``W``."""
    if isinstance(module, nn.Linear):
        return module.weight.is_floating_point() and module.weight.ndim == 2
    return is_conv1d(module)


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of a linear map as a ``(d_out, d_in)`` view; writing edits the module."""
    weight = module.get_parameter("weight").detach()
    return weight.T if is_conv1d(module) else weight


def weight_hash(weight: Tensor) -> str:
    """Return the SHA-256 of a weight ``(d_out, d_in)``: its dtype, shape and row-major bytes."""
    digest = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}".encode())
    for rows in weight.detach().split(1024):  # bounds host memory for large weights on a GPU
        digest.update(rows.contiguous().cpu().view(torch.uint8).numpy())
    return digest.hexdigest()


def expand(pattern: str) -> list[str]:
    """Expand braces: ``{a,b}`` lists alternatives, ``{3..5}`` counts from 3 to 5 inclusive."""
    pieces: list[list[str]] = []
    position = 0
    for found in _BRACE.finditer(pattern):
        pieces.append([pattern[position : found.start()]])
        options: list[str] = []
        for option in found[1].split(","):
            ends = re.fullmatch(r"(\d+)\.\.(\d+)", option.strip())
            if ends:
                options += [str(number) for number in range(int(ends[1]), int(ends[2]) + 1)]
            else:
                options.append(option.strip())
        pieces.append(options)
        position = found.end()
    pieces.append([pattern[position:]])
    return ["".join(parts) for parts in itertools.product(*pieces)]


def find_targets(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Module]:
    """Return the linear maps whose names match, in the model's own order.

    Args:
        model: Any module.
        targets: One or more patterns: ``*`` matches any text, ``{a,b}`` lists alternatives,
            ``{3..5}`` counts. The names inside a compiled or data-parallel model will do.

    Returns:
        A mapping from name to module; never empty.

    Raises:
        ValueError: a pattern matches no linear map; the message lists the closest names.
    """
    maps = {name: module for name, module in model.named_modules() if is_linear_map(module)}
    chosen = set(match_names(targets, list(maps), prefix=wrapping_prefix(model)))
    return {name: module for name, module in maps.items() if name in chosen}


def match_names(
    targets: str | Sequence[str], names: Sequence[str], *, prefix: str = ""
) -> list[str]:
    """Return those of ``names`` that match any of the patterns, in their own order.

    A pattern that matches none is tried with ``prefix`` before it.

    Raises:
        ValueError: a pattern matches none; the message lists the closest names.
    """
    patterns = [targets] if isinstance(targets, str) else list(targets)
    if not patterns:
        raise ValueError("targets: expected at least one name pattern, got none")
    chosen: set[str] = set()
    for pattern in itertools.chain.from_iterable(expand(pattern) for pattern in patterns):
        matched = fnmatch.filter(names, pattern) or fnmatch.filter(names, prefix + pattern)
        if not matched:
            raise ValueError(
                f"targets: {pattern!r} matches no linear map; {_nearest(pattern, names)}"
            )
        chosen.update(matched)
    return [name for name in names if name in chosen]


def _nearest(pattern: str, names: Sequence[str]) -> str:
    if not names:
        return "there are none (nn.Linear or Conv1D)"
    near = difflib.get_close_matches(pattern, names, n=4, cutoff=0.3) or list(names)[:4]
    return f"there are {len(names)}, for example {', '.join(near)}"
