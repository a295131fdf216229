"""The contract of ``second_moment_accumulate``, on every backend."""

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
)


def require_second_moment(
    out: Tensor,  # (d_out, d_in) float32, contiguous
    g: Tensor,  # (tokens, d_out) float32, bfloat16 or float16, any strides
    a: Tensor,  # (tokens, d_in), as g
    offsets: Tensor | None = None,  # (sequences + 1,) int64, ascending in [0, tokens]
    *,
    values: bool = True,
) -> None:
    """Raise unless the arguments fit each other.

    Args:
        out: The sum.
        g: Gradients at the outputs.
        a: The inputs of the same tokens.
        offsets: Sequence ``b`` is tokens ``offsets[b] … offsets[b + 1] - 1``; None: single tokens.
        values: Whether to read the offsets; on a GPU that waits.

    Raises:
        TypeError: a dtype is not accepted.
        ValueError: a shape, layout, device or value does not fit, or ``out`` shares memory with an
            input.
    """
    if g.ndim != 2 or a.ndim != 2 or len(g) != len(a):
        raise ValueError(
            f"g, a: expected shapes (tokens, d_out) and (tokens, d_in), "
            f"got {tuple(g.shape)} and {tuple(a.shape)}"
        )
    require_dtype("g", g, *FLOATS)
    require_dtype("a", a, g.dtype)
    require_dtype("out", out, torch.float32)
    if tuple(out.shape) != (g.shape[1], a.shape[1]):
        raise ValueError(f"out: expected shape {(g.shape[1], a.shape[1])}, got {tuple(out.shape)}")
    require_contiguous("out", out)
    for name, x in (("g", g), ("a", a), ("offsets", offsets)):
        if x is not None:
            require_beside(name, x, "out", out)
    require_apart("out", out, {"g": g, "a": a, "offsets": offsets})
    if offsets is None:
        return
    require_dtype("offsets", offsets, torch.int64)
    if offsets.ndim != 1 or not len(offsets):
        raise ValueError(f"offsets: expected shape (sequences + 1,), got {tuple(offsets.shape)}")
    if values and has_values(offsets):
        require_offsets(offsets, len(g))
