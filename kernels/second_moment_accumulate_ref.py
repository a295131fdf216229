"""Reference of ``second_moment_accumulate``: one sequence's gradient at a time. Never casts."""

import torch
from torch import Tensor


def second_moment_accumulate(
    out: Tensor,  # (d_out, d_in)
    g: Tensor,  # (tokens, d_out)
    a: Tensor,  # (tokens, d_in)
    offsets: Tensor | None = None,  # (sequences + 1,) int64
) -> None:
    """Add ``sum_b (sum_(t in b) g_t a_t^T)^2``, squared elementwise, to ``out``, in place.

    Sequence ``b`` is tokens ``offsets[b] … offsets[b + 1] - 1``. Without offsets every token is a
    sequence.
    """
    bounds = torch.arange(len(g) + 1) if offsets is None else offsets
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        out += (g[start:stop].mT @ a[start:stop]).square()
