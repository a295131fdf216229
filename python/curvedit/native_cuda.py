"""From CUDA tensors to the compiled CUDA kernels: checks, how to share the work out, then addresses and a stream."""

import os

import torch
from torch import Tensor

from curvedit import _C
from curvedit.kernels.syrk_checks import HALVES, in_two_calls, require_syrk
from curvedit.kernels.tiles import tile_count

_DTYPES = {torch.bfloat16: 1, torch.float16: 2}
_LEAST = 2048  # tokens of a share: fewer do not pay for the partial tile


def refuses(x: Tensor) -> str:
    """Why the CUDA kernels cannot take this input, or ""."""
    if x.device.type != "cuda":
        return f"needs CUDA tensors, got {x.device}"
    if x.dtype not in _DTYPES:
        return f"takes bfloat16 or float16, got {x.dtype}"
    if not _C.cuda_architectures():
        return "is not in this build: nvcc was not found"
    major, minor = torch.cuda.get_device_capability(x.device)
    if major < 8:
        return f"needs compute capability 8.0 or more, got {major}.{minor}"
    return ""


def splits_of(tiles: int, tokens: int, processors: int) -> int:
    """Among how many blocks the tokens of a tile are shared, so that few tiles still fill the device twice."""
    return max(1, min(-(-2 * processors // max(1, tiles)), tokens // _LEAST, 16))


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
        TypeError: a dtype is not accepted.
        ValueError: a device, shape or layout does not fit, or ``out`` shares memory with an input.
        RuntimeError: CUDA refused the launch; the message is CUDA's.
    """
    require_syrk(out, x, weight, offsets, dtypes=HALVES)
    tokens, dim = x.shape
    groups = 1 if offsets is None else out.shape[0]
    weight = None if weight is None else weight.contiguous()
    with torch.cuda.device(x.device):
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
        splits = splits_of(tile_count(dim) * groups, tokens // max(1, groups), processors)
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
        )
        if os.environ.get("CURVEDIT_DEBUG"):
            torch.cuda.synchronize()


syrk_accumulate_pair = in_two_calls(syrk_accumulate)
