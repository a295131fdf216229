"""Reference of ``staircase_project``: rotate, mask, rotate back; never casts."""

import torch
from torch import Tensor


def staircase_project_ref(
    w: Tensor,  # (d_out, d_in)
    u_out: Tensor,  # (d_out, d_out)
    u_in: Tensor,  # (d_in, d_in)
    limits: Tensor,  # (d_out,) int, non-increasing
) -> Tensor:
    """``U_G ((U_G^T W U_A) * M) U_A^T`` with ``M_ij = 1`` where ``j < limits[i]``: (d_out, d_in)."""
    mask = torch.arange(w.shape[1], device=w.device) < limits[:, None]
    return u_out @ ((u_out.mT @ w @ u_in) * mask) @ u_in.mT
