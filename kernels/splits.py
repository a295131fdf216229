"""How work is split: a tile's tokens among programs, and a pair of sums into two calls."""

from collections.abc import Callable

from torch import Tensor

_LEAST = 2048  # tokens per share: fewer do not pay for the partial tile

Single = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], None]
Pair = Callable[..., None]


def shares_of(tiles: int, tokens: int, processors: int) -> int:
    """Number of programs that share a tile's tokens, so that few tiles fill a device twice too."""
    return max(1, min(-(-2 * processors // max(1, tiles)), tokens // _LEAST, 16))


def in_two_calls(single: Single) -> Pair:
    """Build ``syrk_accumulate_pair`` from an implementation of ``syrk_accumulate``."""

    def syrk_accumulate_pair(
        out: Tensor,  # as syrk_accumulate's
        out_weighted: Tensor,  # as out
        x: Tensor,  # (tokens, d)
        weight: Tensor,  # (tokens,) float32, >= 0
        mask: Tensor | None = None,  # (tokens,) float32, 0 for tokens left out of out
        offsets: Tensor | None = None,  # (groups + 1,) int64
    ) -> None:
        """Add ``sum_t x_t x_t^T`` to ``out`` and ``sum_t w_t x_t x_t^T`` to ``out_weighted``."""
        single(out, x, mask, offsets)
        single(out_weighted, x, weight, offsets)

    return syrk_accumulate_pair
