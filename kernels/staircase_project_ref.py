"""References of ``staircase_project``, its two halves and ``masked_project``. They never cast."""

import torch
from torch import Tensor


def staircase_project(
    w: Tensor,  # (…, d_out, d_in)
    u_out: Tensor,  # (…, d_out, d_out)
    u_in: Tensor,  # (…, d_in, d_in)
    limits: Tensor,  # (…, d_out) int, non-increasing
) -> Tensor:
    """``U_G ((U_G^T W U_A) * M) U_A^T``: (…, d_out, d_in). ``M_ij = 1`` where ``j < limits[i]``."""
    return staircase_restore(u_out.mT @ w @ u_in, u_out, u_in, limits)


def staircase_rotate(w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    """``(U_G^T W U_A) * M``: (…, d_out, d_in)."""
    return (u_out.mT @ w @ u_in) * _mask(w, limits)


def staircase_restore(components: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    """``U_G (C * M) U_A^T``: (…, d_out, d_in)."""
    return u_out @ (components * _mask(components, limits)) @ u_in.mT


def masked_project(
    w: Tensor,  # (d_out, d_in)
    u_out: Tensor,  # (d_out, d_out)
    u_in: Tensor,  # (d_in, d_in)
    mask: Tensor,  # (d_out, ceil(d_in / 8)) uint8, as numpy.packbits packs rows
) -> Tensor:
    """``U_G ((U_G^T W U_A) * M) U_A^T`` with the bits of ``mask`` as ``M``: (d_out, d_in)."""
    bits = mask[:, :, None] >> torch.arange(7, -1, -1, dtype=torch.uint8, device=mask.device) & 1
    return u_out @ ((u_out.mT @ w @ u_in) * bits.flatten(1)[:, : w.shape[1]]) @ u_in.mT


def _mask(w: Tensor, limits: Tensor) -> Tensor:
    return torch.arange(w.shape[-1], device=w.device) < limits[..., None]
