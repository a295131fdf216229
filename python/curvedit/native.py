"""From tensors to the compiled kernels: checks, then addresses, shapes and strides."""

import torch
from torch import Tensor

from curvedit.check import require_dtype, require_finite, require_shape, require_share
from curvedit.kernels.tiles import TILE, tile_count

try:
    from curvedit import _C
except ImportError as error:
    if "_C" not in str(error):
        raise
    raise ImportError(f"{error}; the compiled part is missing: build it with pip install .") from error

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _require_cpu(name: str, tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: expected a CPU tensor, got one on {tensor.device}")


def syrk_accumulate(
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous
    x: Tensor,  # (tokens, d) float32, bfloat16 or float16, any strides
    weight: Tensor | None = None,  # (tokens,) float32, >= 0
) -> None:
    """Add ``sum_t w_t x_t x_t^T`` to the lower tiles of ``out``, in place.

    A token of weight 0 is not read. Threads are torch's (``torch.get_num_threads()``).

    Raises:
        TypeError: a dtype is not accepted.
        ValueError: a device, shape or layout does not fit, or a weight is negative or not finite.
    """
    _require_cpu("x", x)
    _require_cpu("out", out)
    require_shape("x", x, (None, None))
    require_dtype("x", x, *_DTYPES)
    require_shape("out", out, (tile_count(x.shape[1]), TILE, TILE))
    require_dtype("out", out, torch.float32)
    if not out.is_contiguous():
        raise ValueError(f"out: expected a contiguous tensor, got strides {out.stride()}")
    if weight is not None:
        _require_cpu("weight", weight)
        require_shape("weight", weight, (x.shape[0],))
        require_dtype("weight", weight, torch.float32)
        require_finite("weight", weight)
        if weight.numel() and float(weight.min()) < 0:
            raise ValueError(f"weight: expected values >= 0, got {float(weight.min())}")
        weight = weight.contiguous()
    _C.syrk_accumulate(
        out.data_ptr(),
        x.data_ptr(),
        _DTYPES[x.dtype],
        x.shape[0],
        x.shape[1],
        x.stride(0),
        x.stride(1),
        0 if weight is None else weight.data_ptr(),
        torch.get_num_threads(),
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

    Raises:
        TypeError: a spectrum is not float64.
        ValueError: a spectrum is not descending, finite and >= 0, or ``keep_mass`` not in (0, 1].
    """
    keep_mass = require_share("keep_mass", keep_mass)
    for name, values in (("lam", lam), ("mu", mu)):
        _require_cpu(name, values)
        require_shape(name, values, (None,))
        require_dtype(name, values, torch.float64)
        require_finite(name, values)
        if values.numel() == 0 or bool((values.diff() > 0).any()) or float(values[-1]) < 0:
            raise ValueError(f"{name}: expected one or more descending values >= 0, got {values[:4].tolist()}…")
    lam, mu = lam.contiguous(), mu.contiguous()
    limits = torch.empty(lam.shape[0], dtype=torch.int32)
    threshold, kept, mass = _C.staircase_limits(
        lam.data_ptr(), lam.shape[0], mu.data_ptr(), mu.shape[0], keep_mass, limits.data_ptr()
    )
    return limits, threshold, kept, mass
