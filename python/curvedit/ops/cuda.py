"""From CUDA tensors to the compiled CUDA kernels: how to share the work out, then addresses and a stream."""

import os

import torch
from torch import Tensor

from curvedit import _C
from curvedit.kernels.splits import in_two_calls, shares_of
from curvedit.kernels.tiles import tile_count

_DTYPES = {torch.bfloat16: 1, torch.float16: 2}


def syrk_accumulate(
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous; (groups, …) with offsets
    x: Tensor,  # (tokens, d) bfloat16 or float16, any strides
    weight: Tensor | None = None,  # (tokens,) float32, >= 0
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t w_t x_t x_t^T`` to the lower tiles of ``out``, in place, over all tokens or per group.

    Queued on the current stream. With the environment variable ``CURVEDIT_DEBUG`` set it waits, so
    that an error of the device is raised here.

    Raises:
        RuntimeError: CUDA refused the launch; the message is CUDA's.
    """
    launch(out, x, weight, offsets, hopper=False)


syrk_accumulate_pair = in_two_calls(syrk_accumulate)


def launch(
    out: Tensor, x: Tensor, weight: Tensor | None, offsets: Tensor | None, *, hopper: bool
) -> None:
    """Queue the kernel for all GPUs, or Hopper's own, which takes no weights and rows in whole 16 bytes."""
    tokens, dim = x.shape
    groups = 1 if offsets is None else out.shape[0]
    weight = None if weight is None else weight.contiguous()
    with torch.cuda.device(x.device):
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
        splits = shares_of(tile_count(dim) * groups, tokens // max(1, groups), processors)
        partial = out.new_empty(splits, *out.shape) if splits > 1 else None
        _C.syrk_accumulate_cuda(
            out.data_ptr(),
            x.data_ptr(),
            0 if weight is None else weight.data_ptr(),
            0 if offsets is None else offsets.contiguous().data_ptr(),
            0 if partial is None else partial.data_ptr(),
            _DTYPES[x.dtype],
            tokens,
            dim,
            x.stride(0),
            x.stride(1),
            groups,
            splits,
            torch.cuda.current_stream().cuda_stream,
            hopper,
        )
        if os.environ.get("CURVEDIT_DEBUG"):
            torch.cuda.synchronize()
