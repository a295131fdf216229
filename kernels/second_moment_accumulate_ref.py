"""Reference of ``second_moment_accumulate``: one sequence's gradient after the other; never casts."""

import torch
from torch import Tensor


def second_moment_accumulate(
    out: Tensor,  # (d_out, d_in)
    g: Tensor,  # (tokens, d_out)
    a: Tensor,  # (tokens, d_in)
    offsets: Tensor
    | None = None,  # (sequences + 1,) int64: sequence b is tokens offsets[b] … offsets[b + 1] - 1
) -> None:
    """Add ``sum_b (sum_(t in b) g_t a_t^T)^2``, elementwise, to ``out``; without offsets over single tokens."""
    bounds = torch.arange(len(g) + 1) if offsets is None else offsets
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        out += (g[start:stop].mT @ a[start:stop]).square()
