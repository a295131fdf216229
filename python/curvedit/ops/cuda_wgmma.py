"""Backend ``wgmma``: ``syrk_accumulate`` on the tensor cores of Hopper GPUs.

The kernel takes no weights and aligned rows only. Other tokens are first copied, a few at a time:
times the root of their weight, and rounded to half precision again.
"""

import torch
from torch import Tensor

import curvedit._C as _C
from curvedit.kernels.contract import in_memory, in_order
from curvedit.ops.cuda import DTYPES, address, wait_if_debugging

_TOKENS = 16384  # copied at a time: as many as the kernel adds before it flushes its registers


def syrk_accumulate(
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous; (groups, …) with offsets
    x: Tensor,  # (tokens, d) bfloat16 or float16, any strides
    weight: Tensor | None = None,  # (tokens,) float32, >= 0
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t w_t x_t x_t^T``, over all tokens or per group, to the lower tiles of ``out``.

    Weighted tokens are multiplied by the root of their weight and rounded to bfloat16. Queued like
    :func:`curvedit.ops.cuda.syrk_accumulate`.

    Raises:
        RuntimeError: CUDA refused the launch; the message is CUDA's own.
    """
    _accumulate(out, x, weight, offsets, torch.bfloat16)  # float16 has no room for a weight


def syrk_accumulate_pair(
    out: Tensor,  # as syrk_accumulate's
    out_weighted: Tensor,  # as out
    x: Tensor,  # (tokens, d)
    weight: Tensor,  # (tokens,) float32, >= 0
    mask: Tensor | None = None,  # (tokens,) float32, 0 for tokens left out of out
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t x_t x_t^T`` to ``out`` and ``sum_t w_t x_t x_t^T`` to ``out_weighted``."""
    _accumulate(out, x, mask, offsets, x.dtype)
    _accumulate(out_weighted, x, weight, offsets, torch.bfloat16)


def _accumulate(
    out: Tensor, x: Tensor, weight: Tensor | None, offsets: Tensor | None, rounded_to: torch.dtype
) -> None:
    x = in_memory(x)
    weight, offsets = (None if each is None else in_order(each) for each in (weight, offsets))
    with torch.cuda.device(x.device):
        if weight is None and _is_aligned(x):
            _launch(out, x, offsets)
        elif offsets is not None:  # groups are not cut
            _launch(out, _scaled(x, weight, rounded_to), offsets)
        else:
            for start in range(0, x.shape[0], _TOKENS):
                part = slice(start, start + _TOKENS)
                share = None if weight is None else weight[part]
                _launch(out, _scaled(x[part], share, rounded_to), None)
        wait_if_debugging()


def _is_aligned(x: Tensor) -> bool:
    """Whether rows are contiguous, with length, stride and address in multiples of 16 bytes."""
    return x.stride(1) == 1 and not (x.shape[1] % 8 or x.stride(0) % 8 or x.data_ptr() % 16)


def _launch(out: Tensor, x: Tensor, offsets: Tensor | None) -> None:
    """Queue the kernel. Columns of ``x`` that pad its rows are beyond ``out``, or zero."""
    tokens, dim = x.shape
    groups = 1 if offsets is None else out.shape[0]
    size = _C.syrk_partial_wgmma(tokens, dim, groups) if groups and tokens and dim else 0
    partial = out.new_empty(size) if size else None
    _C.syrk_accumulate_wgmma(
        out.data_ptr(),
        x.data_ptr(),
        address(offsets),
        address(partial),
        DTYPES[x.dtype],
        tokens,
        dim,
        x.stride(0),
        groups,
        torch.cuda.current_stream().cuda_stream,
    )


def _scaled(x: Tensor, weight: Tensor | None, rounded_to: torch.dtype) -> Tensor:
    """Copy tokens times the roots of their weights: ``(tokens, d)``, d rounded up to 8."""
    tokens, dim = x.shape
    dtype = x.dtype if weight is None else rounded_to
    out = x.new_empty(tokens, -(-dim // 8) * 8, dtype=dtype)
    _C.scale_tokens_cuda(
        out.data_ptr(),
        x.data_ptr(),
        address(weight),
        DTYPES[x.dtype],
        DTYPES[dtype],
        tokens,
        dim,
        x.stride(0),
        x.stride(1),
        out.shape[1],
        torch.cuda.current_stream().cuda_stream,
    )
    return out
