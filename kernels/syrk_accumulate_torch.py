"""``syrk_accumulate`` by torch's own products: for devices that have no kernel of ours."""

import torch
from torch import Tensor

from curvedit.kernels.syrk_checks import in_two_calls, require_syrk
from curvedit.kernels.tiles import TILE

_TOKENS = 16384  # at a time, which bounds the float32 copy of a half-precision input
_BAND = 4 * TILE  # rows of the product at a time: 1 / (2 bands) of the square is wasted


def syrk_accumulate_torch(
    out: Tensor,  # (tile_count(d), 128, 128) float32; (groups, …) with offsets
    x: Tensor,  # (tokens, d)
    weight: Tensor | None = None,  # (tokens,) float32, >= 0
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t w_t x_t x_t^T`` to the lower tiles of ``out``, in place, in bands of rows."""
    require_syrk(out, x, weight, offsets)
    if offsets is not None:
        bounds = offsets.tolist()
        for group, start, stop in zip(out, bounds[:-1], bounds[1:], strict=True):
            syrk_accumulate_torch(group, x[start:stop], None if weight is None else weight[start:stop])
        return
    for start in range(0, x.shape[0], _TOKENS):
        block = x[start : start + _TOKENS].to(out.dtype)
        if weight is not None:
            scale = weight[start : start + _TOKENS].to(out.dtype).sqrt()[:, None]
            block = torch.where(scale > 0, block, 0) * scale
        _accumulate(out, block)


syrk_accumulate_pair_torch = in_two_calls(syrk_accumulate_torch)


def _accumulate(out: Tensor, x: Tensor) -> None:
    for first in range(0, x.shape[1], _BAND):
        last = min(first + _BAND, x.shape[1])
        band = x[:, first:last].mT @ x[:, :last]
        for top in range(first, last, TILE):
            rows = band[top - first : top - first + TILE]
            height, row = len(rows), top // TILE
            tiles = out[row * (row + 1) // 2 :]
            tiles[:row, :height] += rows[:, :top].reshape(height, row, TILE).transpose(0, 1)
            tiles[row, :height, :height] += rows[:, top : top + height]
