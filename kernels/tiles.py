"""Tile-packed storage of a symmetric matrix: its lower 128 x 128 tiles, one after another.

Tile ``(row, col)`` with ``col <= row`` lies at index ``row * (row + 1) / 2 + col``. Its element
``(r, c)`` is element ``(128 * row + r, 128 * col + c)`` of the matrix. Two parts of a tile are
never read: what lies above the diagonal of a diagonal tile, and what lies outside a matrix whose
size is not a multiple of 128.
"""

import torch
from torch import Tensor

TILE = 128


def tile_count(size: int) -> int:
    """Number of tiles needed for a symmetric matrix of ``size`` rows."""
    side = -(-size // TILE)
    return side * (side + 1) // 2


def numel(size: int) -> int:
    """Numbers that a packed matrix of ``size`` rows holds."""
    return tile_count(size) * TILE * TILE


def zeros(
    size: int, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Tensor:
    """A packed zero matrix: ``(tile_count(size), 128, 128)``."""
    return torch.zeros(tile_count(size), TILE, TILE, dtype=dtype, device=device)


def pack(
    matrix: Tensor,  # (size, size), symmetric
) -> Tensor:
    """Pack the lower tiles of a symmetric matrix; storage outside the matrix is zero."""
    size = matrix.shape[0]
    packed = zeros(size, matrix.dtype, matrix.device)
    for row, start in enumerate(range(0, size, TILE)):
        band = matrix[start : start + TILE]
        for col, left in enumerate(range(0, start + 1, TILE)):
            part = band[:, left : left + TILE]
            packed[row * (row + 1) // 2 + col, : part.shape[0], : part.shape[1]] = part
    return packed


def unpack(
    packed: Tensor,  # (tile_count(size), 128, 128)
    size: int,
) -> Tensor:
    """The full ``(size, size)`` matrix, exactly symmetric."""
    matrix = packed.new_empty(size, size)
    for row, start in enumerate(range(0, size, TILE)):
        height = min(TILE, size - start)
        for col, left in enumerate(range(0, start + 1, TILE)):
            part = packed[row * (row + 1) // 2 + col, :height, : min(TILE, size - left)]
            if row == col:
                part = part.tril() + part.tril(-1).mT
            matrix[start : start + height, left : left + part.shape[1]] = part
            matrix[left : left + part.shape[1], start : start + height] = part.mT
    return matrix
