"""From CPU tensors to the compiled kernels: addresses, shapes and strides. Arguments come checked by ``choose``."""

import torch
from torch import Tensor

from curvedit import _C
from curvedit.kernels.second_moment_accumulate_torch import accumulate_tokens

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def syrk_accumulate(
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous; (groups, …) with offsets
    x: Tensor,  # (tokens, d) float32, bfloat16 or float16, any strides
    weight: Tensor | None = None,  # (tokens,) float32, >= 0
    offsets: Tensor
    | None = None,  # (groups + 1,) int64: group g takes tokens offsets[g] … offsets[g + 1] - 1
) -> None:
    """Add ``sum_t w_t x_t x_t^T`` to the lower tiles of ``out``, in place, over all tokens or per group.

    A token of weight 0 is not read. Threads are torch's (``torch.get_num_threads()``).
    """
    weight = None if weight is None else weight.contiguous()
    _C.syrk_accumulate([(out.data_ptr(), _address(weight))], *_tokens(x, offsets))


def syrk_accumulate_pair(
    out: Tensor,  # as syrk_accumulate's
    out_weighted: Tensor,  # as out
    x: Tensor,  # (tokens, d)
    weight: Tensor,  # (tokens,) float32, >= 0
    mask: Tensor | None = None,  # (tokens,) float32, 0 where a token does not count in out
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t x_t x_t^T`` to ``out`` and ``sum_t w_t x_t x_t^T`` to ``out_weighted``, in one pass over ``x``."""
    weight, mask = weight.contiguous(), None if mask is None else mask.contiguous()
    sums = [(out.data_ptr(), _address(mask)), (out_weighted.data_ptr(), _address(weight))]
    _C.syrk_accumulate(sums, *_tokens(x, offsets))


def second_moment_accumulate(
    out: Tensor,  # (d_out, d_in) float32, contiguous
    g: Tensor,  # (tokens, d_out) float32, bfloat16 or float16, any strides
    a: Tensor,  # (tokens, d_in), as g
    offsets: Tensor | None = None,  # (sequences + 1,) int64
) -> None:
    """Add ``sum_b (sum_(t in b) g_t a_t^T)^2``, elementwise, to ``out``; without offsets over single tokens.

    On as many threads as torch uses. Holds the packed tokens of a few sequences beside the output.
    """
    if offsets is None:
        accumulate_tokens(out, g, a)
        return
    _C.second_moment_accumulate(
        out.data_ptr(), _source(g), _source(a), offsets.tolist(), torch.get_num_threads()
    )


def staircase_limits(
    lam: Tensor,  # (d_out,) float64, descending, >= 0
    mu: Tensor,  # (d_in,) float64, descending, >= 0
    keep_mass: float,
) -> tuple[Tensor, float, int, float]:
    """The smallest set of products ``lam_i mu_j``, largest first, that holds a share of their sum.

    Returns:
        ``limits`` (d_out,) int32 (row ``i`` keeps columns ``0 … limits[i] - 1``), the smallest kept
        product, how many are kept, and the share of the sum in fact kept.
    """
    lam, mu = lam.contiguous(), mu.contiguous()
    limits = torch.empty(lam.shape[0], dtype=torch.int32)
    threshold, kept, mass = _C.staircase_limits(
        lam.data_ptr(), lam.shape[0], mu.data_ptr(), mu.shape[0], keep_mass, limits.data_ptr()
    )
    return limits, threshold, kept, mass


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _tokens(x: Tensor, offsets: Tensor | None) -> tuple[int, int, int, int, int, list[int], int]:
    """The tokens and the groups they are in, as ``_C.syrk_accumulate`` takes them; then the threads."""
    tokens, dim = x.shape
    bounds: list[int] = [0, tokens] if offsets is None else offsets.tolist()
    return (
        x.data_ptr(),
        _DTYPES[x.dtype],
        dim,
        x.stride(0),
        x.stride(1),
        bounds,
        torch.get_num_threads(),
    )


def _source(x: Tensor) -> tuple[int, int, int, int, int]:
    return x.data_ptr(), _DTYPES[x.dtype], x.shape[1], x.stride(0), x.stride(1)
