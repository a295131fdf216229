"""Backend ``cuda``: splits the work and launches the CUDA kernel on the current stream."""

import os

import torch
from torch import Tensor

import curvedit._C as _C
from curvedit.kernels.contract import in_memory, in_order
from curvedit.kernels.splits import in_two_calls, shares_of
from curvedit.kernels.tiles import tile_count

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def syrk_accumulate(
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous; (groups, …) with offsets
    x: Tensor,  # (tokens, d) bfloat16 or float16, any strides
    weight: Tensor | None = None,  # (tokens,) float32, >= 0
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t w_t x_t x_t^T``, over all tokens or per group, to the lower tiles of ``out``.

    Queued on the current stream. If the environment variable ``CURVEDIT_DEBUG`` is set, this waits
    for the kernel, so that a device error is raised here.

    Raises:
        RuntimeError: CUDA refused the launch; the message is CUDA's own.
    """
    tokens, dim = x.shape
    groups = 1 if offsets is None else out.shape[0]
    x = in_memory(x)
    weight, offsets = (None if each is None else in_order(each) for each in (weight, offsets))
    with torch.cuda.device(x.device):
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
        splits = shares_of(tile_count(dim) * groups, tokens // max(1, groups), processors)
        partial = out.new_empty(splits, *out.shape) if splits > 1 else None
        _C.syrk_accumulate_cuda(
            out.data_ptr(),
            x.data_ptr(),
            address(weight),
            address(offsets),
            address(partial),
            DTYPES[x.dtype],
            tokens,
            dim,
            x.stride(0),
            x.stride(1),
            groups,
            splits,
            torch.cuda.current_stream().cuda_stream,
        )
        wait_if_debugging()


syrk_accumulate_pair = in_two_calls(syrk_accumulate)


def address(tensor: Tensor | None) -> int:
    """Where a tensor's data begin; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def wait_if_debugging() -> None:
    """Wait for the device if ``CURVEDIT_DEBUG`` is set, so that its errors are raised here."""
    if os.environ.get("CURVEDIT_DEBUG"):
        torch.cuda.synchronize()
