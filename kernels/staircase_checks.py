"""What every implementation of ``staircase_project`` checks before any work."""

from torch import Tensor


def require_staircase(w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> None:
    """Raise ``ValueError`` unless the bases fit the weight and the limits are a staircase in it."""
    if w.ndim != 2:
        raise ValueError(f"w: expected shape (d_out, d_in), got {tuple(w.shape)}")
    rows, columns = w.shape
    for name, basis, size in (("u_out", u_out, rows), ("u_in", u_in, columns)):
        if tuple(basis.shape) != (size, size):
            raise ValueError(f"{name}: expected shape ({size}, {size}), got {tuple(basis.shape)}")
        if basis.device != w.device:
            raise ValueError(f"{name}: expected a tensor on {w.device}, as w, got {basis.device}")
    if tuple(limits.shape) != (rows,) or limits.is_floating_point():
        raise ValueError(f"limits: expected ({rows},) integers, got {tuple(limits.shape)} {limits.dtype}")
    if rows and (int(limits.min()) < 0 or int(limits.max()) > columns or bool((limits.diff() > 0).any())):
        raise ValueError(f"limits: expected non-increasing numbers in [0, {columns}], got {limits[:8].tolist()}…")
