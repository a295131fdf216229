"""Matrix products of half-precision tensors in float32."""

import torch
from torch import Tensor


def multiplies_halves(x: Tensor) -> bool:
    """Whether torch multiplies half-precision tensors into a float32 result on ``x``'s device."""
    return x.is_cuda and hasattr(torch.ops.aten.mm, "dtype")


def float32_product(
    left: Tensor,  # (m, k) float32, bfloat16 or float16
    right: Tensor,  # (k, n), as left
) -> Tensor:
    """``left @ right`` in float32, where products of halves are exact.

    On a GPU tensor cores multiply halves as they are.
    """
    if left.dtype != torch.float32 and multiplies_halves(left):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
