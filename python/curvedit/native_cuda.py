"""From CUDA tensors to the compiled CUDA kernels: checks, how to share the work out, then addresses and a stream."""

import os

import torch
from torch import Tensor

from curvedit import _C
from curvedit.kernels.syrk_checks import HALVES, in_two_calls, require_syrk
from curvedit.kernels.tiles import shares_of, tile_count

_DTYPES = {torch.bfloat16: 1, torch.float16: 2}


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


def refuses_hopper(x: Tensor, weight: Tensor | None = None) -> str:
    """Why the kernel of Hopper GPUs cannot take this input, or ""."""
    reason = refuses(x)
    if reason:
        return reason
    major, minor = torch.cuda.get_device_capability(x.device)
    if (major, minor) != (9, 0):
        return f"needs compute capability 9.0, got {major}.{minor}"
    if weight is not None:
        return "takes no weights"
    if x.stride(1) != 1 or x.shape[1] % 8 or x.stride(0) % 8 or x.data_ptr() % 16:
        return "takes rows that lie in whole 16 bytes"
    return "" if x.shape[0] < 1 << 31 else "takes fewer than 2^31 tokens"


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
    _accumulate(out, x, weight, offsets, hopper=False)


def syrk_accumulate_wgmma(
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous; (groups, …) with offsets
    x: Tensor,  # (tokens, d) bfloat16 or float16, rows in whole 16 bytes
    weight: Tensor | None = None,  # None
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """As :func:`syrk_accumulate`, by the tensor cores of Hopper GPUs, for input without weights.

    Raises:
        TypeError: a dtype is not accepted.
        ValueError: a device, shape or layout does not fit, or ``out`` shares memory with an input.
        RuntimeError: the input does not suit, or CUDA refused the launch; the message is CUDA's.
    """
    reason = refuses_hopper(x, weight)
    if reason:
        raise RuntimeError(f"syrk_accumulate: wgmma {reason}")
    _accumulate(out, x, None, offsets, hopper=True)


def _accumulate(out: Tensor, x: Tensor, weight: Tensor | None, offsets: Tensor | None, *, hopper: bool) -> None:
    require_syrk(out, x, weight, offsets, dtypes=HALVES)
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


syrk_accumulate_pair = in_two_calls(syrk_accumulate)
