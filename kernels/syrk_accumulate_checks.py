"""The contracts of ``syrk_accumulate`` and ``syrk_accumulate_pair``, on every backend."""

import torch
from torch import Tensor

from curvedit.kernels.contract import (
    FLOATS,
    has_values,
    require_apart,
    require_beside,
    require_contiguous,
    require_dtype,
    require_offsets,
    require_weights,
)
from curvedit.kernels.tiles import TILE, tile_count


def require_syrk(
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous; (groups, …) with offsets
    x: Tensor,  # (tokens, d) float32, bfloat16 or float16, any strides
    weight: Tensor | None = None,  # (tokens,) float32, finite, >= 0
    offsets: Tensor | None = None,  # (groups + 1,) int64, ascending in [0, tokens]
    *,
    values: bool = True,
    names: tuple[str, str] = ("out", "weight"),
) -> None:
    """Raise unless the arguments fit each other.

    Args:
        out: The sum.
        x: The tokens.
        weight: Their weights.
        offsets: Group ``g`` takes tokens ``offsets[g] … offsets[g + 1] - 1``.
        values: Whether to read weights and offsets; on a GPU that waits.
        names: What messages call ``out`` and ``weight``.

    Raises:
        TypeError: a dtype is not accepted.
        ValueError: a shape, layout, device or value does not fit, or ``out`` shares memory with an
            input.
    """
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (tokens, d), got {tuple(x.shape)}")
    require_dtype("x", x, *FLOATS)
    expected: tuple[int, ...] = (tile_count(x.shape[1]), TILE, TILE)
    if offsets is not None:
        require_dtype("offsets", offsets, torch.int64)
        if offsets.ndim != 1 or not offsets.numel():
            raise ValueError(f"offsets: expected shape (groups + 1,), got {tuple(offsets.shape)}")
        require_beside("offsets", offsets, "x", x)
        expected = (offsets.numel() - 1, *expected)
    for name, tensor, shape in ((names[1], weight, (x.shape[0],)), (names[0], out, expected)):
        if tensor is None:
            continue
        require_dtype(name, tensor, torch.float32)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
        require_beside(name, tensor, "x", x)
    require_contiguous(names[0], out)
    require_apart(names[0], out, {"x": x, names[1]: weight, "offsets": offsets})
    if values and has_values(x):
        if offsets is not None:
            require_offsets(offsets, x.shape[0])
        if weight is not None:
            require_weights(names[1], weight)


def require_pair(
    out: Tensor,  # as require_syrk's
    out_weighted: Tensor,  # as out
    x: Tensor,
    weight: Tensor,  # for out_weighted
    mask: Tensor | None = None,  # for out: (tokens,) float32, 0 for tokens left out
    offsets: Tensor | None = None,
    *,
    values: bool = True,
) -> None:
    """Raise unless the arguments of the pair fit each other, as :func:`require_syrk` does."""
    require_syrk(out, x, mask, offsets, values=values, names=("out", "mask"))
    require_syrk(out_weighted, x, weight, offsets, values=values, names=("out_weighted", "weight"))
    require_apart("out", out, {"out_weighted": out_weighted})
