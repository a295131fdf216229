"""Backend ``cpp``: passes CPU tensors to the compiled kernels, as addresses and strides.

Arguments were checked by ``choose``.
"""

import torch
from torch import Tensor

import curvedit._C as _C
from curvedit.kernels.contract import in_memory, in_order
from curvedit.kernels.second_moment_accumulate_torch import accumulate_tokens

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def syrk_accumulate(
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous; (groups, …) with offsets
    x: Tensor,  # (tokens, d) float32, bfloat16 or float16, any strides
    weight: Tensor | None = None,  # (tokens,) float32, >= 0
    # (groups + 1,) int64: group g takes tokens offsets[g] … offsets[g + 1] - 1
    offsets: Tensor | None = None,
) -> None:
    """Add ``sum_t w_t x_t x_t^T``, over all tokens or per group, to the lower tiles of ``out``.

    A token of weight 0 is not read. Uses as many threads as torch (``torch.get_num_threads()``).
    """
    x, weight = in_memory(x), None if weight is None else in_order(weight)
    _C.syrk_accumulate([(out.data_ptr(), _address(weight))], *_tokens(x, offsets))


def syrk_accumulate_pair(
    out: Tensor,  # as for syrk_accumulate
    out_weighted: Tensor,  # as out
    x: Tensor,  # (tokens, d)
    weight: Tensor,  # (tokens,) float32, >= 0
    mask: Tensor | None = None,  # (tokens,) float32, 0 for tokens that are left out of out
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t x_t x_t^T`` to ``out`` and the weighted sum to ``out_weighted``, in one pass."""
    x, weight, mask = in_memory(x), in_order(weight), None if mask is None else in_order(mask)
    sums = [(out.data_ptr(), _address(mask)), (out_weighted.data_ptr(), _address(weight))]
    _C.syrk_accumulate(sums, *_tokens(x, offsets))


def second_moment_accumulate(
    out: Tensor,  # (d_out, d_in) float32, contiguous
    g: Tensor,  # (tokens, d_out) float32, bfloat16 or float16, any strides
    a: Tensor,  # (tokens, d_in), as g
    offsets: Tensor | None = None,  # (sequences + 1,) int64
) -> None:
    """Add ``sum_b (sum_(t in b) g_t a_t^T)^2``, squared elementwise, to ``out``.

    Without offsets each token is its own ``b``. Uses as many threads as torch. Besides the output,
    only the packed tokens of a few sequences are held in memory.
    """
    if offsets is None:
        accumulate_tokens(out, g, a)
        return
    g, a = in_memory(g), in_memory(a)
    _C.second_moment_accumulate(
        out.data_ptr(), _source(g), _source(a), offsets.tolist(), torch.get_num_threads()
    )


def staircase_limits(
    lam: Tensor,  # (d_out,) float64, descending, >= 0
    mu: Tensor,  # (d_in,) float64, descending, >= 0
    keep_mass: float,
) -> tuple[Tensor, float, int, float]:
    """Find the smallest set of products ``lam_i mu_j``, largest first, with a share of their sum.

    Returns:
        ``limits`` (d_out,) int32 (row ``i`` keeps columns ``0 … limits[i] - 1``), the smallest kept
        product, the number kept, and the share of the sum actually kept.
    """
    lam, mu = in_order(lam), in_order(mu)
    limits = torch.empty(lam.shape[0], dtype=torch.int32)
    threshold, kept, mass = _C.staircase_limits(
        lam.data_ptr(), lam.shape[0], mu.data_ptr(), mu.shape[0], keep_mass, limits.data_ptr()
    )
    return limits, threshold, kept, mass


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _tokens(x: Tensor, offsets: Tensor | None) -> tuple[int, int, int, int, int, list[int], int]:
    """Return the arguments of ``_C.syrk_accumulate`` after the sums: tokens, groups, threads."""
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
