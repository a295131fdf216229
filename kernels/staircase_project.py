"""Triton kernel of ``staircase_project``: products whose extent follows the staircase.

The dense rotation by the output basis goes to the vendor's library. The two products by the input
basis run here, a tile of output eigenvectors at a time: into the eigenbasis only the columns that
the tile keeps are computed, and out of it only those are contracted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from curvedit.kernels.staircase_checks import require_staircase

ROWS, COLUMNS, DEPTH = 64, 128, 16  # of a tile, and per step
WARPS, STAGES = 8, 2


@triton.jit
def staircase_product_kernel(
    out,  # (rows, columns) float32, row-major
    left,  # (rows, depth) float32, row-major
    right,  # (depth, columns) float32, any strides
    limits,  # (rows,) int32, non-increasing
    rows,
    columns,
    depth,
    right_row_stride,
    right_column_stride,
    INTO: tl.constexpr,  # into the eigenbasis: columns are limited; otherwise the depth is
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    reach = tl.load(limits + tl.program_id(0) * ROWS)  # of the tile's first row, the farthest
    extent = depth
    if INTO:
        if tl.program_id(1) * COLUMNS >= reach:
            return
    else:
        extent = tl.minimum(depth, reach)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, extent, DEPTH):
        k = start + tl.arange(0, DEPTH)
        a = tl.load(
            left + row[:, None].to(tl.int64) * depth + k[None, :],
            (row < rows)[:, None] & (k < extent)[None, :],
            other=0.0,
        )
        b = tl.load(
            right + k[:, None].to(tl.int64) * right_row_stride + column[None, :].to(tl.int64) * right_column_stride,
            (k < extent)[:, None] & (column < columns)[None, :],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision="tf32x3")
    place = out + row[:, None].to(tl.int64) * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    if INTO:
        limit = tl.load(limits + row, row < rows, other=0)
        total = tl.where(column[None, :] < limit[:, None], total, 0.0)
    tl.store(place, total, inside)


def staircase_project(
    w: Tensor,  # (d_out, d_in), any floating dtype
    u_out: Tensor,  # (d_out, d_out) float32
    u_in: Tensor,  # (d_in, d_in) float32
    limits: Tensor,  # (d_out,) int, non-increasing
) -> Tensor:
    """``U_G ((U_G^T W U_A) * M) U_A^T`` with ``M_ij = 1`` where ``j < limits[i]``: (d_out, d_in) float32.

    Raises:
        ValueError: shapes do not fit, or the limits are no staircase.
    """
    require_staircase(w, u_out, u_in, limits)
    w = w.float()
    kept = int(limits.sum())
    if kept == w.numel():
        return w.clone()
    if 2 * kept <= w.numel():
        return _project(w, u_out, u_in, limits)
    removed = (w.shape[1] - limits).flip(0)
    return w - _project(w, u_out.flip(1), u_in.flip(1), removed)


def _project(w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    used = int((limits > 0).sum())
    if not used:
        return torch.zeros_like(w)
    limits = limits[:used].int().contiguous()
    basis = u_out[:, :used]
    rotated = basis.mT @ w
    inside = torch.zeros_like(rotated)
    _product(inside, rotated, u_in, limits, into=True)
    _product(rotated, inside, u_in.mT, limits, into=False)
    return basis @ rotated


def _product(out: Tensor, left: Tensor, right: Tensor, limits: Tensor, *, into: bool) -> None:
    rows, columns = out.shape
    staircase_product_kernel[(triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))](
        out,
        left.contiguous(),
        right,
        limits,
        rows,
        columns,
        left.shape[1],
        right.stride(0),
        right.stride(1),
        INTO=into,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        DEPTH=DEPTH,
        num_warps=WARPS,
        num_stages=STAGES,
    )
