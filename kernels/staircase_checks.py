"""What every implementation of the projections checks before any work."""

import math

import torch
from torch import Tensor

ORTHOGONALITY_LIMIT = 1e-3  # a basis rounded to bfloat16 is beyond it
_SAMPLE = 16  # columns of a basis


def require_bases(w: Tensor, u_out: Tensor, u_in: Tensor) -> None:
    """Raise ``ValueError`` unless the weight is finite and the bases fit it, or every weight of a batch.

    Of each basis 16 columns, spread evenly, must be orthonormal to 1e-3.
    """
    if w.ndim not in (2, 3):
        raise ValueError(f"w: expected shape (d_out, d_in) or (batch, d_out, d_in), got {tuple(w.shape)}")
    *batch, rows, columns = w.shape
    for name, basis, size in (("u_out", u_out, rows), ("u_in", u_in, columns)):
        if tuple(basis.shape) != (*batch, size, size):
            raise ValueError(f"{name}: expected shape {(*batch, size, size)}, got {tuple(basis.shape)}")
        if basis.device != w.device:
            raise ValueError(f"{name}: expected a tensor on {w.device}, as w, got {basis.device}")
    if u_out.dtype != u_in.dtype:
        raise ValueError(f"u_in: expected dtype {u_out.dtype}, as u_out, got {u_in.dtype}")
    if w.numel() and not all(map(math.isfinite, map(float, w.aminmax()))):  # one pass, no mask of its own
        raise ValueError(f"w: expected finite values, got {int((~w.isfinite()).sum())} that are not")
    for name, basis in (("u_out", u_out), ("u_in", u_in)):
        columns_of_it = basis[..., :: max(1, basis.shape[-1] // _SAMPLE)]
        gram = columns_of_it.mT @ columns_of_it
        off = (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).abs()
        if off.numel() and not float(off.max()) <= ORTHOGONALITY_LIMIT:
            raise ValueError(
                f"{name}: expected orthonormal columns to {ORTHOGONALITY_LIMIT}, got off by {float(off.max()):.1e}"
            )


def require_staircase(w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> None:
    """Raise ``ValueError`` unless the bases fit and the limits are a staircase in each weight."""
    require_bases(w, u_out, u_in)
    *batch, rows, columns = w.shape
    if tuple(limits.shape) != (*batch, rows) or limits.is_floating_point():
        raise ValueError(f"limits: expected {(*batch, rows)} integers, got {tuple(limits.shape)} {limits.dtype}")
    if limits.numel() and (int(limits.min()) < 0 or int(limits.max()) > columns or bool((limits.diff() > 0).any())):
        raise ValueError(f"limits: expected non-increasing numbers in [0, {columns}], got {limits[..., :8].tolist()}…")


def require_mask(w: Tensor, u_out: Tensor, u_in: Tensor, mask: Tensor) -> None:
    """Raise ``ValueError`` unless the bases fit and the mask has a bit for each component."""
    require_bases(w, u_out, u_in)
    if w.ndim != 2:
        raise ValueError(f"w: expected shape (d_out, d_in), got {tuple(w.shape)}")
    expected = (w.shape[0], -(-w.shape[1] // 8))
    if tuple(mask.shape) != expected or str(mask.dtype) != "torch.uint8":
        raise ValueError(f"mask: expected {expected} uint8, got {tuple(mask.shape)} {mask.dtype}")
