"""Reference of ``syrk_accumulate``: a few lines of torch that never cast."""

from torch import Tensor

from curvedit.kernels.tiles import pack


def syrk_accumulate_ref(
    out: Tensor,  # (tile_count(d), 128, 128)
    x: Tensor,  # (tokens, d)
    weight: Tensor | None = None,  # (tokens,), >= 0
) -> None:
    """Add ``sum_t w_t x_t x_t^T`` to the lower tiles of ``out``, in place; weight 0 leaves a token out."""
    if weight is not None:
        used = weight > 0
        x = x[used] * weight[used].sqrt()[:, None]
    out += pack(x.mT @ x)
