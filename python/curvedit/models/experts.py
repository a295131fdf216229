"""Experts whose matrices are fused into one parameter, as transformers stores them.

The parameter ``(experts, d_out, d_in)``, or its transpose per expert, holds no linear map that
could be watched. So each expert's matrix is made one of its own, with a view of the parameter as
its weight, and :func:`routed` has the model call them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from curvedit.models.plain_numbers import why_not_plain

# What transformers declares of every such module that any of its implementations can run.
_DECLARED = ("has_gate", "has_bias", "is_transposed", "_apply_gate", "config")
_CHOSEN = ("num_experts_per_tok", "moe_k", "top_k_experts")  # names in configurations


@dataclass(frozen=True)
class Rows:
    """Which rows of a call's hidden states, ``(positions, d)``, an expert was given."""

    index: Tensor  # (rows,)
    on_host: Tensor  # the same
    positions: int


class ExpertMap(nn.Module):
    """One expert's matrix, as a linear map ``y = W a + b``; it owns no parameter."""

    def __init__(self, owner: nn.Module, key: str, number: int) -> None:
        """Stand for the matrix of this number in the parameter ``key`` of ``owner``."""
        super().__init__()
        self._owner = (owner,)  # in a tuple, lest it count as a module inside
        self.key, self.number = key, number
        self.rows: Rows | None = None  # of the call that is being made

    @property
    def owner(self) -> nn.Module:
        """The module that holds the experts."""
        return self._owner[0]

    @property
    def parameter(self) -> Tensor:
        """The fused parameter."""
        return self.owner.get_parameter(self.key)

    @property
    def weight(self) -> Tensor:
        """``(d_out, d_in)``, a view."""
        matrix = self.parameter[self.number]
        return matrix.T if self.owner.is_transposed else matrix

    @property
    def bias(self) -> Tensor | None:
        """``(d_out,)``, a view; None without."""
        if not self.owner.has_bias:
            return None
        return self.owner.get_parameter(f"{self.key}_bias")[self.number]

    def forward(self, inputs: Tensor) -> Tensor:
        """``(rows, d_in)`` in, ``(rows, d_out)`` out."""
        return F.linear(inputs, self.weight, self.bias)


def holds_experts(module: nn.Module) -> bool:
    """Whether a module holds fused experts that can be told apart."""
    if not all(hasattr(module, name) for name in _DECLARED):
        return False
    found = [module._parameters.get(key) for key in _keys(module)]
    fused = [each for each in found if each is not None and each.ndim == 3]
    return (
        len(fused) == len(found)
        and len({len(each) for each in fused}) == 1
        and not getattr(module, "_is_expert_parallel", False)
        and all(why_not_plain(each) is None for each in fused)
    )


def experts_of(module: nn.Module) -> dict[str, ExpertMap]:
    """The matrices of a module that holds experts, by what follows its name: "0.down_proj"."""
    keys = _keys(module)
    count = len(module.get_parameter(keys[0]))
    return {f"{n}.{key}": ExpertMap(module, key, n) for n in range(count) for key in keys}


def holder_of(module: nn.Module) -> nn.Module:
    """The module that holds a linear map's weight."""
    return module.owner if isinstance(module, ExpertMap) else module


def calls_per_position(module: nn.Module) -> float:
    """How often a linear map is called per position: an expert as often as the router chooses it.

    By the model's configuration, as if all experts were chosen equally often; 1 where it does not
    say how many are chosen, and for all other maps.
    """
    if not isinstance(module, ExpertMap):
        return 1.0
    chosen = (getattr(module.owner.config, name, None) for name in _CHOSEN)
    count = next((number for number in chosen if isinstance(number, int)), None)
    return 1.0 if count is None else count / len(module.parameter)


def owners_of(targets: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules whose experts are among these linear maps, by their own names."""
    return {
        name.rsplit(".", 2)[0]: module.owner
        for name, module in targets.items()
        if isinstance(module, ExpertMap)
    }


@contextmanager
def routed(targets: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, modules that hold experts call these linear maps where they are among them."""
    chosen: dict[nn.Module, dict[str, ExpertMap]] = {}
    for module in targets.values():
        if isinstance(module, ExpertMap):
            maps = chosen.setdefault(module.owner, {})
            maps[f"{module.number}.{module.key}"] = module
    saved = {owner: owner.__dict__.get("forward") for owner in chosen}
    for owner, maps in chosen.items():
        owner.forward = partial(_routed_forward, owner, {**experts_of(owner), **maps})
    try:
        yield
    finally:
        for owner, forward in saved.items():
            if forward is None:
                del owner.forward
            else:
                owner.forward = forward


def _keys(module: nn.Module) -> tuple[str, str]:
    return ("gate_up_proj" if module.has_gate else "up_proj"), "down_proj"


def _routed_forward(
    owner: Any,
    maps: Mapping[str, ExpertMap],
    hidden_states: Tensor,  # (positions, d)
    top_k_index: Tensor,  # (positions, k)
    top_k_weights: Tensor,  # likewise
) -> Tensor:
    """What ``owner`` computes, one expert after the other; ``(positions, d)``."""
    first, second = _keys(owner)
    choices = top_k_index.shape[-1]
    chosen = top_k_index.reshape(-1)
    order = chosen.argsort(stable=True)
    rows = order // choices
    on_host, counts = rows.cpu(), chosen.bincount(minlength=len(maps) // 2).tolist()
    if len(counts) > len(maps) // 2:
        raise ValueError(
            f"targets: expected a router of {type(owner).__name__} to choose among its "
            f"{len(maps) // 2} experts, got number {len(counts) - 1}; leave its experts out"
        )
    outputs, start = [], 0
    for number, count in enumerate(counts):
        if not count:
            continue
        part = slice(start, start + count)
        start += count
        given = Rows(rows[part], on_host[part], len(hidden_states))
        inner = _called(maps[f"{number}.{first}"], hidden_states[given.index], given)
        inner = owner._apply_gate(inner) if owner.has_gate else owner.act_fn(inner)
        outputs.append(_called(maps[f"{number}.{second}"], inner, given))
    joined = torch.cat(outputs)
    if getattr(owner, "has_post_expert_norm", False):
        joined = owner.post_expert_norm(joined)
    joined = joined * top_k_weights.reshape(-1)[order, None]
    summed = joined[order.argsort()].view(len(hidden_states), choices, -1).sum(1)
    return summed.to(hidden_states.dtype)


def _called(expert: ExpertMap, inputs: Tensor, rows: Rows) -> Tensor:
    expert.rows = rows
    try:
        output: Tensor = expert(inputs)
        return output
    finally:
        expert.rows = None
