"""Whether a weight is the one that factors were fitted on."""

from typing import Protocol

import torch
from torch import Tensor

from curvedit.checks import require_finite, require_shape
from curvedit.models import weight_hash


class FittedWeight(Protocol):
    """What is known of the weight ``(d_out, d_in)`` that a target's factors were fitted on."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""

    @property
    def weight_sha256(self) -> str:
        """``models.weight_hash`` of the weight; "" if unknown."""

    @property
    def weight_dtype(self) -> str:
        """The weight's dtype, such as "torch.float32"; "" if unknown."""


def require_fitted(name: str, weight: Tensor, target: FittedWeight) -> None:
    """Refuse a weight ``(d_out, d_in)`` that is not the one the target was fitted on.

    Raises:
        ValueError: the shape or hash differs, or the weight is not finite.
    """
    require_shape(f"model: the weight of {name!r}", weight, target.shape)
    require_finite(f"model: the weight of {name!r}", weight)
    if target.weight_sha256 and not is_fitted(weight, target):
        raise ValueError(
            f"model: the weight of {name!r} is not the one the factors were fitted on "
            "(it belongs to another model, or was already edited); use the factors' own model, "
            "or fit again"
        )


def is_fitted(weight: Tensor, target: FittedWeight) -> bool:
    """Whether a weight, cast to the dtype it was fitted in, has the target's hash."""
    dtype = getattr(torch, target.weight_dtype.removeprefix("torch."), weight.dtype)
    return weight_hash(weight.to(dtype)) == target.weight_sha256
