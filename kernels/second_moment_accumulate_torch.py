"""``second_moment_accumulate`` by torch's own products: a strip of a sequence's gradient at a time."""

from itertools import pairwise

from torch import Tensor

_STRIP = 256  # rows of a gradient that are held
_TOKENS = 1024  # squared at a time


def second_moment_accumulate(
    out: Tensor,  # (d_out, d_in) float32, contiguous
    g: Tensor,  # (tokens, d_out) float32, bfloat16 or float16
    a: Tensor,  # (tokens, d_in), as g
    offsets: Tensor | None = None,  # (sequences + 1,) int64
) -> None:
    """Add ``sum_b (sum_(t in b) g_t a_t^T)^2``, elementwise, to ``out``; without offsets over single tokens."""
    if offsets is None:
        accumulate_tokens(out, g, a)
        return
    for start, stop in pairwise(offsets.tolist()):
        right = a[start:stop].float()
        for row in range(0, out.shape[0], _STRIP):
            gradient = g[start:stop, row : row + _STRIP].float().mT @ right
            out[row : row + _STRIP].addcmul_(gradient, gradient)


def accumulate_tokens(out: Tensor, g: Tensor, a: Tensor) -> None:
    """Every token a sequence of its own: ``out += (g * g)^T (a * a)``, one product."""
    for start in range(0, len(g), _TOKENS):
        part = slice(start, start + _TOKENS)
        out.addmm_(g[part].float().square().mT, a[part].float().square())
