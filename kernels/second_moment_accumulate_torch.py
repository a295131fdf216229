"""``second_moment_accumulate`` by torch's own products: a strip of a sequence's gradient at a time."""

from itertools import pairwise

from torch import Tensor

from curvedit.kernels.second_moment_checks import accumulate_tokens, require_second_moment

_STRIP = 256  # rows of a gradient that are held


def second_moment_accumulate_torch(
    out: Tensor,  # (d_out, d_in) float32, contiguous
    g: Tensor,  # (tokens, d_out) float32, bfloat16 or float16
    a: Tensor,  # (tokens, d_in), as g
    offsets: Tensor | None = None,  # (sequences + 1,) int64
) -> None:
    """Add ``sum_b (sum_(t in b) g_t a_t^T)^2``, elementwise, to ``out``; without offsets over single tokens.

    Raises:
        TypeError: a dtype is not accepted.
        ValueError: a shape, layout or device does not fit, or ``out`` shares memory with an input.
    """
    require_second_moment(out, g, a, offsets)
    if offsets is None:
        accumulate_tokens(out, g, a)
        return
    for start, stop in pairwise(offsets.tolist()):
        right = a[start:stop].float()
        for row in range(0, out.shape[0], _STRIP):
            gradient = g[start:stop, row : row + _STRIP].float().mT @ right
            out[row : row + _STRIP].addcmul_(gradient, gradient)
