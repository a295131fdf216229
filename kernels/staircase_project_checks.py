"""The contract of ``staircase_project``, its halves and ``masked_project``, on every backend."""

import math

import torch
from torch import Tensor

from curvedit.kernels.contract import has_values, require_beside

ORTHOGONALITY_LIMIT = 1e-3  # a basis rounded to bfloat16 exceeds it
_SAMPLE = 16  # columns of a basis that are checked


def _require_bases(w: Tensor, u_out: Tensor, u_in: Tensor, values: bool) -> None:
    """Raise unless the weight, or batch of weights, is finite and the bases fit it.

    About 16 evenly spaced columns of each basis must be orthonormal to 1e-3.
    """
    if w.ndim not in (2, 3):
        raise ValueError(
            f"w: expected shape (d_out, d_in) or (batch, d_out, d_in), got {tuple(w.shape)}"
        )
    if not w.is_floating_point():
        raise TypeError(f"w: expected a floating-point dtype, got {w.dtype}")
    *batch, rows, columns = w.shape
    for name, basis, size in (("u_out", u_out, rows), ("u_in", u_in, columns)):
        if tuple(basis.shape) != (*batch, size, size):
            raise ValueError(
                f"{name}: expected shape {(*batch, size, size)}, got {tuple(basis.shape)}"
            )
        require_beside(name, basis, "w", w)
        if not basis.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {basis.dtype}")
    if u_out.dtype != u_in.dtype:
        raise TypeError(f"u_in: expected dtype {u_out.dtype}, as u_out, got {u_in.dtype}")
    if not (values and has_values(w)):
        return
    # aminmax takes one pass and allocates no mask.
    if w.numel() and not all(map(math.isfinite, map(float, w.aminmax()))):
        raise ValueError(
            f"w: expected finite values, got {int((~w.isfinite()).sum())} that are not"
        )
    for name, basis in (("u_out", u_out), ("u_in", u_in)):
        columns_of_it = basis[..., :: max(1, basis.shape[-1] // _SAMPLE)]
        gram = columns_of_it.mT @ columns_of_it
        off = (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).abs()
        if off.numel() and not float(off.max()) <= ORTHOGONALITY_LIMIT:
            raise ValueError(
                f"{name}: expected orthonormal columns to {ORTHOGONALITY_LIMIT}, "
                f"got off by {float(off.max()):.1e}"
            )


def require_staircase(
    w: Tensor,  # (d_out, d_in) or (batch, d_out, d_in), finite
    u_out: Tensor,  # (…, d_out, d_out), orthonormal
    u_in: Tensor,  # (…, d_in, d_in), orthonormal, dtype as u_out
    limits: Tensor,  # (…, d_out) integers, non-increasing in [0, d_in]
    *,
    values: bool = True,
) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless bases and limits fit the weight.

    ``values`` says whether to read the weight, the bases and the limits; on a GPU that waits.
    """
    _require_bases(w, u_out, u_in, values)
    *batch, rows, columns = w.shape
    if limits.is_floating_point() or limits.dtype == torch.bool:
        raise TypeError(f"limits: expected integers, got {limits.dtype}")
    if tuple(limits.shape) != (*batch, rows):
        raise ValueError(f"limits: expected shape {(*batch, rows)}, got {tuple(limits.shape)}")
    require_beside("limits", limits, "w", w)
    if not (values and has_values(limits)):
        return
    if limits.numel() and (
        int(limits.min()) < 0 or int(limits.max()) > columns or bool((limits.diff() > 0).any())
    ):
        raise ValueError(
            f"limits: expected non-increasing numbers in [0, {columns}], "
            f"got {limits[..., :8].tolist()}…"
        )


def require_mask(
    w: Tensor,  # (d_out, d_in), finite
    u_out: Tensor,  # (d_out, d_out), orthonormal
    u_in: Tensor,  # (d_in, d_in), orthonormal, dtype as u_out
    mask: Tensor,  # (d_out, ceil(d_in / 8)) uint8, as numpy.packbits packs rows
    *,
    values: bool = True,
) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless bases and mask fit the weight.

    ``values`` says whether to read the weight and the bases; on a GPU that waits.
    """
    if w.ndim != 2:
        raise ValueError(f"w: expected shape (d_out, d_in), got {tuple(w.shape)}")
    _require_bases(w, u_out, u_in, values)
    if mask.dtype != torch.uint8:
        raise TypeError(f"mask: expected torch.uint8, got {mask.dtype}")
    expected = (w.shape[0], -(-w.shape[1] // 8))
    if tuple(mask.shape) != expected:
        raise ValueError(f"mask: expected shape {expected}, got {tuple(mask.shape)}")
    require_beside("mask", mask, "w", w)
