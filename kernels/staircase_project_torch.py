"""``staircase_project`` by torch's own products, leaving out what lies outside the staircase.

Per direction a dense rotation costs ``2 m n (m + n)``. Here the staircase is cut at a row ``s`` into
a wide part (rows up to ``s``) that is reached through the first ``s`` output eigenvectors, and a
narrow part (the rows below, at most ``c`` columns wide) reached through the first ``c`` input
eigenvectors. Inside each part a band of rows is contracted only over the columns it keeps. When
more than half of the components are kept, the complement, also a staircase, is removed instead.
"""

import torch
from torch import Tensor

from curvedit.kernels.staircase_checks import require_staircase

_BANDS = 24  # a band is a few percent of the rows: fewer waste work at its edge, more waste calls
_LEAST = 32


def staircase_project_torch(
    w: Tensor,  # (d_out, d_in), any floating dtype
    u_out: Tensor,  # (d_out, d_out) float32
    u_in: Tensor,  # (d_in, d_in) float32
    limits: Tensor,  # (d_out,) int, non-increasing
) -> Tensor:
    """``U_G ((U_G^T W U_A) * M) U_A^T`` in the bases' dtype: (d_out, d_in).

    Raises:
        ValueError: shapes do not fit, or the limits are no staircase.
    """
    require_staircase(w, u_out, u_in, limits)
    w = w.to(u_out.dtype)
    rows = limits.long().cpu()
    kept = int(rows.sum())
    if kept == w.numel():
        return w.clone()
    if 2 * kept <= w.numel():
        return _project(w, u_out, u_in, rows.tolist())
    removed = (w.shape[1] - rows).flip(0).tolist()
    return w - _project(w, u_out.flip(1), u_in.flip(1), removed)


def _project(w: Tensor, u_out: Tensor, u_in: Tensor, limits: list[int]) -> Tensor:
    bands = _bands(limits)
    split, _ = best_split(bands, *w.shape)
    wide, narrow = bands[:split], bands[split:]
    result = torch.zeros_like(w)
    if wide:
        _through_output(result, w, u_out, u_in, wide)
    if narrow:
        _through_input(result, w, u_out, u_in, narrow)
    return result


Band = tuple[int, int, list[int]]  # first row, last row + 1, limits of its rows; all keep something


def _bands(limits: list[int]) -> list[Band]:
    """Neighbouring rows, a band at a time, without the rows that keep nothing."""
    used = sum(limit > 0 for limit in limits)
    height = max(_LEAST, -(-used // _BANDS))
    return [(top, min(top + height, used), limits[top : min(top + height, used)]) for top in range(0, used, height)]


def best_split(bands: list[Band], m: int, n: int) -> tuple[int, int]:
    """How many bands to reach through the output basis, and the floating-point operations then.

    Two directions; the rest goes through the input basis.
    """
    return min(((k, _cost(bands[:k], bands[k:], m, n)) for k in range(len(bands) + 1)), key=lambda found: found[1])


def _cost(wide: list[Band], narrow: list[Band], m: int, n: int) -> int:
    area = [sum((stop - start) * limits[0] for start, stop, limits in part) for part in (wide, narrow)]
    through_output = 2 * m * n * wide[-1][1] + 2 * n * area[0] if wide else 0
    through_input = 2 * m * n * narrow[0][2][0] + 2 * m * area[1] if narrow else 0
    return 2 * (through_output + through_input)


def _through_output(result: Tensor, w: Tensor, u_out: Tensor, u_in: Tensor, bands: list[Band]) -> None:
    """Rotate rows first, ``T = U_G^T W``; then a band needs only the columns it keeps."""
    basis = u_out[:, : bands[-1][1]]
    rotated = basis.mT @ w
    for start, stop, limits in bands:
        columns = u_in[:, : limits[0]]
        kept = _cut(rotated[start:stop] @ columns, limits)
        torch.mm(kept, columns.mT, out=rotated[start:stop])
    result.addmm_(basis, rotated)


def _through_input(result: Tensor, w: Tensor, u_out: Tensor, u_in: Tensor, bands: list[Band]) -> None:
    """Rotate columns first, ``T = W U_A``; then a band needs only its own output eigenvectors."""
    columns = u_in[:, : bands[0][2][0]]
    rotated = w @ columns
    back = torch.zeros_like(rotated)
    for start, stop, limits in bands:
        basis, width = u_out[:, start:stop], limits[0]
        kept = _cut(basis.mT @ rotated[:, :width], limits)
        back[:, :width].addmm_(basis, kept)
    result.addmm_(back, columns.mT)


def _cut(band: Tensor, limits: list[int]) -> Tensor:
    """Zero what lies beyond each row's own limit, in place."""
    if limits[-1] < band.shape[1]:
        last = torch.tensor(limits, device=band.device)[:, None]
        band.masked_fill_(torch.arange(band.shape[1], device=band.device) >= last, 0)
    return band
