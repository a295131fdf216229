"""``syrk_accumulate`` with torch's products, in bands of rows: where no measured kernel runs.

On a GPU half-precision input is multiplied as it is, into a float32 result: such products are
exact, and tensor cores compute them about ten times as fast as float32 ones. Everything else is
multiplied in float32.
"""

import torch
from torch import Tensor

from curvedit.kernels.products import multiplies_halves
from curvedit.kernels.splits import in_two_calls
from curvedit.kernels.tiles import TILE

# Tokens at a time. Bounds the size of a float32 copy, and how many products the tensor cores, which
# truncate when they add, sum up without a flush.
_TOKENS = 16384
_BAND = 8 * TILE  # rows of the product at a time: of b bands, 1 / 2b of the square is wasted


def syrk_accumulate(
    out: Tensor,  # (tile_count(d), 128, 128) float32; (groups, …) with offsets
    x: Tensor,  # (tokens, d) float32, bfloat16 or float16
    weight: Tensor | None = None,  # (tokens,) float32, >= 0
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t w_t x_t x_t^T`` to the lower tiles of ``out``, in place.

    Tokens of weight 0 are left out, whatever they hold.
    """
    if offsets is not None:
        bounds = offsets.tolist()
        for group, start, stop in zip(out, bounds[:-1], bounds[1:], strict=True):
            syrk_accumulate(group, x[start:stop], None if weight is None else weight[start:stop])
        return
    for start in range(0, x.shape[0], _TOKENS):
        tokens = slice(start, start + _TOKENS)
        _accumulate(out, x[tokens], None if weight is None else weight[tokens])


syrk_accumulate_pair = in_two_calls(syrk_accumulate)


def _accumulate(out: Tensor, x: Tensor, weight: Tensor | None) -> None:
    if weight is not None:
        x = torch.where(weight[:, None] > 0, x, 0)
    if not _multiplies_halves(x, weighted=weight is not None):
        rows = x.to(out.dtype)
        if weight is not None:
            rows = rows * weight.to(out.dtype).sqrt()[:, None]
        _add_bands(out, rows, rows)
    elif weight is None:
        _add_bands(out, x, x)
    else:
        # w x has 24 significant bits: the sum of three bfloat16 numbers, whose products with x are
        # exact again.
        rest = x.to(out.dtype) * weight[:, None]
        for _ in range(3):
            part = rest.to(x.dtype)
            _add_bands(out, part, x)
            rest = rest - part


def _multiplies_halves(x: Tensor, *, weighted: bool) -> bool:
    """Whether torch multiplies half-precision tensors into a float32 result here.

    Weighted float16 is excluded: it has no room for a weight.
    """
    accepted = (torch.bfloat16,) if weighted else (torch.bfloat16, torch.float16)
    return x.dtype in accepted and multiplies_halves(x)


def _add_bands(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the lower tiles of ``left^T right``, which is symmetric."""
    for first in range(0, left.shape[1], _BAND):
        last = min(first + _BAND, left.shape[1])
        columns = left[:, first:last].mT
        same = left.dtype == out.dtype
        band = (
            columns @ right[:, :last]
            if same
            else torch.mm(columns, right[:, :last], out_dtype=out.dtype)
        )
        for top in range(first, last, TILE):
            rows = band[top - first : top - first + TILE]
            height, row = len(rows), top // TILE
            tiles = out[row * (row + 1) // 2 :]
            tiles[:row, :height] += rows[:, :top].reshape(height, row, TILE).transpose(0, 1)
            tiles[row, :height, :height] += rows[:, top : top + height]
