"""How work is cut up: a tile's tokens among programs, and a pair of sums into two calls."""

from collections.abc import Callable

from torch import Tensor

_LEAST = 2048  # tokens of a share: fewer do not pay for the partial tile

Single = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], None]
Pair = Callable[..., None]


def shares_of(tiles: int, tokens: int, processors: int) -> int:
    """Among how many programs the tokens of a tile are shared, so that few tiles still fill a device twice."""
    return max(1, min(-(-2 * processors // max(1, tiles)), tokens // _LEAST, 16))


def in_two_calls(single: Single) -> Pair:
    """``syrk_accumulate_pair`` out of an implementation of ``syrk_accumulate``."""

    def syrk_accumulate_pair(
        out: Tensor,  # as the single one's
        out_weighted: Tensor,  # as out
        x: Tensor,  # (tokens, d)
        weight: Tensor,  # (tokens,) float32, >= 0
        mask: Tensor | None = None,  # (tokens,) float32, 0 where a token does not count in out
        offsets: Tensor | None = None,  # (groups + 1,) int64
    ) -> None:
        """Add ``sum_t x_t x_t^T`` to ``out`` and ``sum_t w_t x_t x_t^T`` to ``out_weighted``."""
        single(out, x, mask, offsets)
        single(out_weighted, x, weight, offsets)

    return syrk_accumulate_pair
