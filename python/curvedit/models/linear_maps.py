"""Finds a model's linear maps by name pattern, and gives their weights.

The package writes a linear map as ``y = W a`` with ``W (d_out, d_in)``. ``nn.Linear`` stores ``W``;
the ``Conv1D`` of Hugging Face GPT-2 stores its transpose. :func:`weight_of` hides the difference.
"""

import difflib
import fnmatch
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from curvedit.meter import beat
from curvedit.models.experts import ExpertMap, experts_of, holds_experts
from curvedit.models.plain_numbers import why_not_plain
from curvedit.models.quantised import is_quantised
from curvedit.models.wrapping import wrapping_prefix

FUSED = "several matrices in one tensor, which cannot be told apart"
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
    """Whether ``module`` computes ``y = W a`` with a ``W`` stored as plain numbers."""
    if isinstance(module, ExpertMap):
        return True
    return (isinstance(module, nn.Linear) or is_conv1d(module)) and obstacle(module) is None


def obstacle(module: nn.Module) -> str | None:
    """Why the weight of a linear map cannot be fitted and edited as it is; None if it can."""
    weight = module._parameters.get("weight")
    if is_quantised(module):
        return f"its weight is quantised ({type(module).__name__}, {type(weight).__name__})"
    if weight is None:
        return "its weight is computed from other parameters"
    if (reason := why_not_plain(weight)) is not None:
        return reason
    return None if weight.ndim == 2 else f"its weight has shape {tuple(weight.shape)}"


def is_fused(module: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter holds several matrices that cannot be told apart."""
    return (
        parameter.ndim == 3
        and not holds_experts(module)
        and min(parameter.shape[1:]) > 1
        and not isinstance(module, nn.modules.conv._ConvNd)
    )


def maps_of(model: nn.Module, *, quantised: bool = False) -> dict[str, nn.Module]:
    """Every linear map that can be fitted and edited as it is, by name, in the model's own order.

    A map that an adapter is laid over, as PEFT does it, goes by the name that it has without the
    adapter, whose own maps are left out. Fused experts go by number, as in "experts.0.down_proj".
    With ``quantised``, also those that can be fitted only.
    """

    def counts(module: nn.Module) -> bool:
        return is_linear_map(module) or (quantised and is_quantised(module))

    found: dict[str, nn.Module] = {}
    adapters: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(adapters)):
            continue
        base = _adapted(module)
        if base is not None:
            adapters.append(f"{name}.")
            if counts(base) and _adapter_obstacle(module) is None:
                found[name] = base
        elif counts(module):
            found[name] = module
        elif holds_experts(module) and not _is_under_adapter(name):
            found |= {_inside(name, key): each for key, each in experts_of(module).items()}
    return found


def instead_of(model: nn.Module, name: str) -> str:
    """What a model has under the name of a linear map that it lacks, for messages."""
    found = maps_of(model, quantised=True).get(name) or dict(model.named_modules()).get(name)
    if found is None:
        return "none of that name"
    if is_quantised(found):
        return f"one whose weight is quantised ({type(found).__name__}); give the unquantised model"
    return type(found).__name__


def _inside(module: str, name: str) -> str:
    """The name of what a module holds; the model itself has none."""
    return f"{module}.{name}" if module else name


def _adapted(module: nn.Module) -> nn.Module | None:
    """The linear map that an adapter is laid over; None if ``module`` is no adapter of one."""
    base = module._modules.get("base_layer")
    return base if base is not None and (isinstance(base, nn.Linear) or is_conv1d(base)) else None


def _is_under_adapter(name: str) -> bool:
    """Whether PEFT has put a module below an adapter of its parameters, which replaces them."""
    return name.rpartition(".")[2] == "base_layer"


def _adapter_obstacle(module: nn.Module) -> str | None:
    """Why the map below an adapter cannot be fitted; None if it can."""
    if len(getattr(module, "lora_magnitude_vector", None) or ()):
        return "its adapter (DoRA) also uses its weight elsewhere; merge the adapter"
    return None


def unfittable(model: nn.Module, *, quantised: bool = False) -> dict[str, str]:
    """Names of weights and modules that compute linear maps but cannot be fitted, with the reason.

    Modules come under their own names and those of their weights, for patterns to match. With
    ``quantised``, without those that can be fitted but not edited.
    """
    found = {}
    adapters: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        over = next((each for each in adapters if name.startswith(f"{each}.")), None)
        if _adapted(module) is not None and over is None:
            adapters[name] = module
            if (reason := _adapter_obstacle(module)) is not None:
                found[name] = reason
        if over is not None and module is _adapted(adapters[over]):
            name = over
        elif over is not None and is_linear_map(module):
            found[name] = f"it belongs to the adapter of {over!r}; merge the adapter"
        reasons = {
            key: FUSED
            for key, parameter in module._parameters.items()
            if parameter is not None and is_fused(module, parameter)
        }
        if holds_experts(module) and _is_under_adapter(name):
            adapted = "an adapter is laid over its experts; merge the adapter"
            reasons |= dict.fromkeys(experts_of(module), adapted)
        looks_linear = isinstance(module, nn.Linear) or is_conv1d(module)
        is_left_out = looks_linear and not (quantised and is_quantised(module))
        if is_left_out and (reason := obstacle(module)) is not None:
            found[name] = reason
        found.update({_inside(name, key): reason for key, reason in reasons.items()})
    return found


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of a linear map as a ``(d_out, d_in)`` view; writing edits the module."""
    if isinstance(module, ExpertMap):
        return module.weight.detach()
    weight = module.get_parameter("weight").detach()
    return weight.T if is_conv1d(module) else weight


def weight_hash(weight: Tensor) -> str:
    """Return the SHA-256 of a weight ``(d_out, d_in)``: its dtype, shape and row-major bytes."""
    digest = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}".encode())
    for rows in weight.detach().split(1024):  # bounds host memory for large weights on a GPU
        digest.update(rows.contiguous().cpu().view(torch.uint8).numpy())
        beat()
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


def find_targets(
    model: nn.Module, targets: str | Sequence[str], *, quantised: bool = False
) -> dict[str, nn.Module]:
    """Return the linear maps whose names match, in the model's own order.

    Args:
        model: Any module.
        targets: One or more patterns: ``*`` matches any text, ``{a,b}`` lists alternatives,
            ``{3..5}`` counts. The names inside a compiled or data-parallel model, or one with
            adapters, will do.
        quantised: Take also maps whose weights are quantised, which cannot be edited.

    Returns:
        A mapping from name to module; never empty.

    Raises:
        ValueError: a pattern matches no linear map; the message says why, or lists the closest
            names.
    """
    maps = maps_of(model, quantised=quantised)
    prefix = wrapping_prefix(model)
    chosen = set(
        match_names(
            targets, list(maps), prefix=prefix, others=unfittable(model, quantised=quantised)
        )
    )
    return {name: module for name, module in maps.items() if name in chosen}


def match_names(
    targets: str | Sequence[str],
    names: Sequence[str],
    *,
    prefix: str = "",
    others: Mapping[str, str] | None = None,
) -> list[str]:
    """Return those of ``names`` that match any of the patterns, in their own order.

    Args:
        targets: The patterns; one that matches no name is tried with ``prefix`` before it.
        names: The linear maps.
        prefix: What wrappers put before the names.
        others: Names that cannot be chosen, with the reason, for messages.

    Raises:
        ValueError: a pattern matches none; the message lists the closest names.
    """
    patterns = [targets] if isinstance(targets, str) else list(targets)
    if not patterns:
        raise ValueError("targets: expected at least one name pattern, got none")
    chosen: set[str] = set()
    for pattern in itertools.chain.from_iterable(expand(pattern) for pattern in patterns):
        matched = _matched(pattern, names, prefix)
        if not matched:
            found = matching(pattern, others or {}, prefix=prefix)
            hint = _nearest(pattern, names)
            if found:
                name, reason = next(iter(found.items()))
                hint = f"it matches {name!r}, which cannot be fitted: {reason}"
            raise ValueError(f"targets: {pattern!r} matches no linear map; {hint}")
        chosen.update(matched)
    return [name for name in names if name in chosen]


def matching(
    targets: str | Sequence[str], names: Mapping[str, str], *, prefix: str = ""
) -> dict[str, str]:
    """Return those of ``names`` that match any of the patterns; a pattern need not match any."""
    patterns = [targets] if isinstance(targets, str) else list(targets)
    chosen = {
        name
        for pattern in itertools.chain.from_iterable(map(expand, patterns))
        for name in _matched(pattern, list(names), prefix)
    }
    return {name: reason for name, reason in names.items() if name in chosen}


def _matched(pattern: str, names: Sequence[str], prefix: str) -> list[str]:
    return fnmatch.filter(names, pattern) or fnmatch.filter(names, prefix + pattern)


def _nearest(pattern: str, names: Sequence[str]) -> str:
    if not names:
        return "there are none (nn.Linear or Conv1D)"
    near = difflib.get_close_matches(pattern, names, n=4, cutoff=0.3) or list(names)[:4]
    return f"there are {len(names)}, for example {', '.join(near)}"
