"""Backend ``wgmma``: ``syrk_accumulate`` on the tensor cores of Hopper GPUs.

The kernel takes half-precision tokens without weights, in aligned rows. Others are first copied, a
few at a time: times the root of their weight, and rounded to bfloat16 again. Float32 tokens, and
weighted float16 ones, become the sum of two bfloat16 ones, which keeps 16 bits; of their four
products the smallest, ``2^-16`` of the largest at most, is left out.
"""

import torch
from torch import Tensor

import curvedit._C as _C
from curvedit.kernels.contract import in_memory, in_order
from curvedit.kernels.splits import in_two_calls
from curvedit.ops.cuda import DTYPES, address, wait_if_debugging

_TOKENS = 16384  # copied at a time: as many as the kernel adds before it flushes its registers


def syrk_accumulate(
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous; (groups, …) with offsets
    x: Tensor,  # (tokens, d) float32, bfloat16 or float16, any strides
    weight: Tensor | None = None,  # (tokens,) float32, >= 0
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t w_t x_t x_t^T``, over all tokens or per group, to the lower tiles of ``out``.

    Bfloat16 tokens with weights are multiplied by their roots and rounded to bfloat16 again. Queued
    like :func:`curvedit.ops.cuda.syrk_accumulate`.

    Raises:
        RuntimeError: CUDA refused the launch; the message is CUDA's own.
    """
    x = in_memory(x)
    weight, offsets = (None if each is None else in_order(each) for each in (weight, offsets))
    with torch.cuda.device(x.device):
        if weight is None and _can_be_read(x):
            _launch(out, (x,), offsets)
        elif offsets is not None:  # groups are not cut
            _launch(out, _scaled(x, weight), offsets)
        else:
            for start in range(0, x.shape[0], _TOKENS):
                part = slice(start, start + _TOKENS)
                share = None if weight is None else weight[part]
                _launch(out, _scaled(x[part], share), None)
        wait_if_debugging()


syrk_accumulate_pair = in_two_calls(syrk_accumulate)


def _can_be_read(x: Tensor) -> bool:
    """Whether these are halves in rows with length, stride and address in multiples of 16 bytes."""
    is_aligned = not (x.shape[1] % 8 or x.stride(0) % 8 or x.data_ptr() % 16)
    return x.dtype != torch.float32 and x.stride(1) == 1 and is_aligned


def _launch(out: Tensor, parts: tuple[Tensor, ...], offsets: Tensor | None) -> None:
    """Queue the kernel for the sum of one or two parts. Columns that pad their rows are zero."""
    tokens, dim = parts[0].shape
    groups = 1 if offsets is None else out.shape[0]
    if not (groups and tokens and dim):
        return
    size = _C.syrk_partial_wgmma(tokens, dim, groups, len(parts) > 1)
    partial = out.new_empty(size) if size else None
    _C.syrk_accumulate_wgmma(
        out.data_ptr(),
        parts[0].data_ptr(),
        parts[1].data_ptr() if len(parts) > 1 else 0,
        address(offsets),
        address(partial),
        DTYPES[parts[0].dtype],
        tokens,
        dim,
        parts[0].stride(0),
        groups,
        torch.cuda.current_stream().cuda_stream,
    )


def _scaled(x: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    """Copy tokens times the roots of their weights: ``(tokens, d)``, d rounded up to 8.

    Two copies, whose sum they are, where one would lose bits of the tokens or has no room for them.
    """
    tokens, dim = x.shape
    is_plain = x.dtype == torch.bfloat16 or (x.dtype == torch.float16 and weight is None)
    is_split, dtype = not is_plain, x.dtype if is_plain else torch.bfloat16
    shape = (tokens, -(-dim // 8) * 8)
    parts = tuple(x.new_empty(shape, dtype=dtype) for _ in range(1 + is_split))
    _C.scale_tokens_cuda(
        parts[0].data_ptr(),
        parts[1].data_ptr() if is_split else 0,
        x.data_ptr(),
        address(weight),
        DTYPES[x.dtype],
        DTYPES[dtype],
        tokens,
        dim,
        x.stride(0),
        x.stride(1),
        shape[1],
        torch.cuda.current_stream().cuda_stream,
    )
    return parts
