"""``second_moment_accumulate`` with torch's products, a strip of one gradient at a time."""

from itertools import pairwise

from torch import Tensor

_STRIP = 256  # rows of a gradient held at a time
_TOKENS = 1024  # tokens squared at a time


def second_moment_accumulate(
    out: Tensor,  # (d_out, d_in) float32, contiguous
    g: Tensor,  # (tokens, d_out) float32, bfloat16 or float16
    a: Tensor,  # (tokens, d_in), as g
    offsets: Tensor | None = None,  # (sequences + 1,) int64
) -> None:
    """Add ``sum_b (sum_(t in b) g_t a_t^T)^2``, squared elementwise, to ``out``, in place.

    Without offsets every token is a sequence.
    """
    if offsets is None:
        accumulate_tokens(out, g, a)
        return
    for start, stop in pairwise(offsets.tolist()):
        right = a[start:stop].float()
        for row in range(0, out.shape[0], _STRIP):
            gradient = g[start:stop, row : row + _STRIP].float().mT @ right
            out[row : row + _STRIP].addcmul_(gradient, gradient)


def accumulate_tokens(out: Tensor, g: Tensor, a: Tensor) -> None:
    """Treat every token as a sequence: ``out += (g * g)^T (a * a)``, a single product."""
    for start in range(0, len(g), _TOKENS):
        part = slice(start, start + _TOKENS)
        out.addmm_(g[part].float().square().mT, a[part].float().square())
