"""``second_moment_accumulate`` with torch's products, a strip of one gradient at a time."""

from itertools import pairwise

from torch import Tensor

from curvedit.kernels.products import float32_product, multiplies_halves

_STRIP = 1 << 20  # elements of a gradient held at a time; on a GPU, which a strip should fill,
_STRIP_ON_GPU = 1 << 25  # … more
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
    held = _STRIP_ON_GPU if g.is_cuda else _STRIP
    rows = max(256, held // max(1, out.shape[1]))
    for start, stop in pairwise(offsets.tolist()):
        right = a[start:stop] if multiplies_halves(a) else a[start:stop].float()
        for row in range(0, out.shape[0], rows):
            gradient = float32_product(g[start:stop, row : row + rows].mT.to(right.dtype), right)
            out[row : row + rows].addcmul_(gradient, gradient)


def accumulate_tokens(out: Tensor, g: Tensor, a: Tensor) -> None:
    """Treat every token as a sequence: ``out += (g * g)^T (a * a)``, a single product."""
    for start in range(0, len(g), _TOKENS):
        part = slice(start, start + _TOKENS)
        out.addmm_(g[part].float().square().mT, a[part].float().square())
