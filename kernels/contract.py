"""Checks that several ops share: dtypes, devices, overlapping memory, offsets and weights.

Each ``<op>_checks.py`` states the contract of one op, for every backend: shapes, dtypes, layout
and, unless the caller vouches for them, values. Reading a value makes the CPU wait for the GPU;
a meta tensor has no values to read.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALVES)


def require_dtype(name: str, tensor: Tensor, *accepted: torch.dtype) -> None:
    """Raise ``TypeError`` unless the tensor has one of the accepted dtypes."""
    if tensor.dtype not in accepted:
        raise TypeError(f"{name}: expected one of {list(accepted)}, got {tensor.dtype}")


def require_beside(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ``ValueError`` unless the tensor is on the same device as ``other``."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name}: expected a tensor on {other.device}, as {other_name}, got {tensor.device}"
        )


def require_contiguous(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` unless the tensor's memory holds its values, one after another."""
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")
    if tensor.is_neg():
        raise ValueError(
            f"{name}: expected a contiguous tensor, got a lazily negated view; "
            "call .resolve_neg() on it"
        )


def require_apart(name: str, out: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """Raise ``ValueError`` if ``out`` shares memory with another tensor.

    Only address ranges are compared, so tensors that interleave without a common element count too.
    """
    if not has_values(out):
        return
    first, last = _span(out)
    for other, tensor in others.items():
        if (
            tensor is not None
            and tensor.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
        ):
            start, stop = _span(tensor)
            if first < stop and start < last:
                raise ValueError(f"{name}: must not share memory with {other}")


def in_memory(tensor: Tensor) -> Tensor:
    """The tensor with a negation that torch has put off (``is_neg``) carried out.

    A kernel that reads addresses would not see the negation.
    """
    resolved: Tensor = tensor.resolve_neg()
    return resolved


def in_order(tensor: Tensor) -> Tensor:
    """The tensor, contiguous, as a kernel reads it that takes no strides."""
    return in_memory(tensor).contiguous()


def require_offsets(offsets: Tensor, tokens: int) -> None:
    """Raise ``ValueError`` unless the offsets ascend within ``[0, tokens]``.

    Their shape must have been checked before.
    """
    bounds = offsets.tolist()
    if sorted(bounds) != bounds or (bounds and (bounds[0] < 0 or bounds[-1] > tokens)):
        raise ValueError(
            f"offsets: expected ascending numbers from 0 to {tokens}, got {bounds[:8]}"
        )


def require_weights(name: str, weight: Tensor) -> None:
    """Raise ``ValueError`` unless the weights are finite and not negative."""
    if not weight.numel():
        return
    low, high = map(float, weight.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int((~weight.isfinite()).sum())
        raise ValueError(
            f"{name}: expected finite values, got {bad} NaN or infinite of {weight.numel()}"
        )
    if low < 0:
        raise ValueError(f"{name}: expected values >= 0, got {low}")


def has_values(tensor: Tensor) -> bool:
    """Whether the tensor has memory behind it, which meta and fake tensors lack."""
    return tensor.device.type != "meta" and not hasattr(tensor, "fake_mode")


def _span(tensor: Tensor) -> tuple[int, int]:
    """The tensor's first address, and the one past its last."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return start, start + (last + 1) * tensor.element_size()
