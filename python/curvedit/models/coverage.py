"""Which of a model's parameters are fitted, and why the others are not."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from curvedit.models.experts import ExpertMap, experts_of, holds_experts
from curvedit.models.linear_maps import (
    FUSED,
    is_fused,
    is_linear_map,
    matching,
    obstacle,
    unfittable,
)
from curvedit.models.wrapping import wrapping_prefix

_NONE: Mapping[str, str] = {}
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


@dataclass(frozen=True)
class CoverageRow:
    """Parameters of one kind; layers are counted together, with ``*`` for their number."""

    name: str  # of the parameters, such as "model.layers.*.mlp.up_proj.weight"
    kind: str  # class of the module that holds them
    tensors: int
    parameters: int
    fitted: bool
    why: str  # why they are not fitted; empty if they are

    def to_json(self) -> dict[str, Any]:
        """The row as in a manifest."""
        return asdict(self)


def coverage_rows(
    model: nn.Module, fitted: Mapping[str, nn.Module], left_out: Mapping[str, str] = _NONE
) -> list[CoverageRow]:
    """Every parameter of the model, once, the largest rows first.

    Args:
        model: Any module; tied parameters count under their first name.
        fitted: The linear maps that are fitted.
        left_out: Names of those that turned out to have no factors, with the reason.
    """
    covered = {_identity(module) for name, module in fitted.items() if name not in left_out}
    unused = {_identity(fitted[name]): reason for name, reason in left_out.items()}
    found: dict[tuple[str, str, str], tuple[int, int]] = {}
    for name, module, parameter, identity in _parameters(model):
        why = (
            ""
            if identity in covered
            else unused.get(identity) or _why(module, name.rpartition(".")[2], parameter)
        )
        key = re.sub(r"(?<=\.)\d+(?=\.)", "*", name), type(module).__name__, why
        tensors, numbers = found.get(key, (0, 0))
        found[key] = tensors + 1, numbers + parameter.numel()
    rows = [
        CoverageRow(name, kind, tensors, numbers, not why, why)
        for (name, kind, why), (tensors, numbers) in found.items()
    ]
    return sorted(rows, key=lambda row: -row.parameters)


def fitted_share(rows: list[CoverageRow]) -> float:
    """Share of the parameters that are fitted."""
    total = sum(row.parameters for row in rows)
    return sum(row.parameters for row in rows if row.fitted) / total if total else 0.0


def passed_over(model: nn.Module, targets: str | Sequence[str]) -> dict[str, str]:
    """Weights of linear maps that the patterns match but that cannot be fitted, with the reason."""
    return matching(targets, unfittable(model, quantised=True), prefix=wrapping_prefix(model))


_Identity = tuple[int, int]  # of a parameter; and which of its matrices, 0 if it is only one


def _identity(module: nn.Module) -> _Identity:
    if isinstance(module, ExpertMap):
        return id(module.parameter), module.number
    return id(module.weight), 0


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor, _Identity]]:
    """Name, module and tensor of every parameter, each tensor once, and fused experts apart."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        experts = experts_of(module) if holds_experts(module) else {}
        fused = {id(each.parameter) for each in experts.values()} - seen
        for name, each in experts.items():
            if id(each.parameter) in fused:
                yield f"{prefix}.{name}" if prefix else name, each, each.weight, _identity(each)
        seen |= fused
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}" if prefix else name, module, parameter, (id(parameter), 0)


def _why(module: nn.Module, name: str, parameter: Tensor) -> str:
    if parameter.ndim < 2:
        return "a vector, such as a bias or a norm"
    if isinstance(module, nn.Embedding):
        return "an embedding"
    if isinstance(module, _CONVOLUTIONS):
        return "a convolution"
    if is_fused(module, parameter):
        return FUSED
    if isinstance(module, ExpertMap) or (name == "weight" and is_linear_map(module)):
        return "no pattern matches it"
    return obstacle(module) or f"a parameter of its own of {type(module).__name__}"
