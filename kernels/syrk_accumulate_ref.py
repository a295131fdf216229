"""References of ``syrk_accumulate`` and ``syrk_accumulate_pair``. They never cast."""

from torch import Tensor

from curvedit.kernels.splits import in_two_calls
from curvedit.kernels.tiles import pack


def syrk_accumulate(
    out: Tensor,  # (tile_count(d), 128, 128); (groups, …) with offsets
    x: Tensor,  # (tokens, d)
    weight: Tensor | None = None,  # (tokens,), >= 0
    offsets: Tensor | None = None,  # (groups + 1,)
) -> None:
    """Add ``sum_t w_t x_t x_t^T`` to the lower tiles of ``out``, in place.

    Tokens of weight 0 are left out, whatever they hold.
    """
    if offsets is not None:
        for group, start, stop in zip(out, offsets[:-1], offsets[1:], strict=True):
            syrk_accumulate(group, x[start:stop], None if weight is None else weight[start:stop])
        return
    if weight is not None:
        used = weight > 0
        x = x[used] * weight[used].sqrt()[:, None]
    out += pack(x.mT @ x)


syrk_accumulate_pair = in_two_calls(syrk_accumulate)
