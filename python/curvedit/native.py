"""From tensors to the compiled kernels: checks, then addresses, shapes and strides."""

import torch
from torch import Tensor

from curvedit.check import require_dtype, require_finite, require_shape, require_share
from curvedit.kernels.second_moment_checks import accumulate_tokens, require_second_moment
from curvedit.kernels.syrk_checks import require_apart, require_syrk

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
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous; (groups, …) with offsets
    x: Tensor,  # (tokens, d) float32, bfloat16 or float16, any strides
    weight: Tensor | None = None,  # (tokens,) float32, >= 0
    offsets: Tensor | None = None,  # (groups + 1,) int64: group g takes tokens offsets[g] … offsets[g + 1] - 1
) -> None:
    """Add ``sum_t w_t x_t x_t^T`` to the lower tiles of ``out``, in place, over all tokens or per group.

    A token of weight 0 is not read. Threads are torch's (``torch.get_num_threads()``).

    Raises:
        TypeError: a dtype is not accepted.
        ValueError: a device, shape, layout or offset does not fit, a weight is negative or not finite,
            or ``out`` shares memory with an input.
    """
    _accumulate({"out": (out, "weight", weight)}, x, offsets)


def syrk_accumulate_pair(
    out: Tensor,  # as syrk_accumulate's
    out_weighted: Tensor,  # as out
    x: Tensor,  # (tokens, d)
    weight: Tensor,  # (tokens,) float32, >= 0
    mask: Tensor | None = None,  # (tokens,) float32, 0 where a token does not count in out
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t x_t x_t^T`` to ``out`` and ``sum_t w_t x_t x_t^T`` to ``out_weighted``, in one pass over ``x``.

    Raises:
        TypeError: a dtype is not accepted.
        ValueError: as :func:`syrk_accumulate`.
    """
    _accumulate({"out": (out, "mask", mask), "out_weighted": (out_weighted, "weight", weight)}, x, offsets)


def _accumulate(sums: dict[str, tuple[Tensor, str, Tensor | None]], x: Tensor, offsets: Tensor | None) -> None:
    _require_cpu("x", x)
    for name, (out, name_of_weight, weight) in sums.items():
        _require_cpu(name, out)
        require_syrk(out, x, weight, offsets, names=(name, name_of_weight))
        require_apart(name, out, {other: sums[other][0] for other in sums if other != name})
    tokens, dim = x.shape
    bounds = [0, tokens] if offsets is None else _bounds(offsets, tokens)
    weights = [None if weight is None else _weight(name, weight) for _, name, weight in sums.values()]
    addresses = [
        (out.data_ptr(), 0 if weight is None else weight.data_ptr())
        for (out, _, _), weight in zip(sums.values(), weights, strict=True)
    ]
    _C.syrk_accumulate(
        addresses, x.data_ptr(), _DTYPES[x.dtype], dim, x.stride(0), x.stride(1), bounds, torch.get_num_threads()
    )


def _weight(name: str, weight: Tensor) -> Tensor:
    require_finite(name, weight)
    if weight.numel() and float(weight.min()) < 0:
        raise ValueError(f"{name}: expected values >= 0, got {float(weight.min())}")
    return weight.contiguous()


def _bounds(offsets: Tensor, tokens: int) -> list[int]:
    bounds: list[int] = offsets.tolist()
    if bounds[0] < 0 or bounds[-1] > tokens or sorted(bounds) != bounds:
        raise ValueError(f"offsets: expected ascending numbers from 0 to {tokens}, got {bounds[:8]}")
    return bounds


def second_moment_accumulate(
    out: Tensor,  # (d_out, d_in) float32, contiguous
    g: Tensor,  # (tokens, d_out) float32, bfloat16 or float16, any strides
    a: Tensor,  # (tokens, d_in), as g
    offsets: Tensor | None = None,  # (sequences + 1,) int64
) -> None:
    """Add ``sum_b (sum_(t in b) g_t a_t^T)^2``, elementwise, to ``out``; without offsets over single tokens.

    On as many threads as torch uses. Holds the packed tokens of a few sequences beside the output.

    Raises:
        TypeError: a dtype is not accepted.
        ValueError: a shape, layout or device does not fit, or ``out`` shares memory with an input.
    """
    for name, tensor in (("out", out), ("g", g), ("a", a)):
        _require_cpu(name, tensor)
    require_second_moment(out, g, a, offsets)
    if offsets is None:
        accumulate_tokens(out, g, a)
        return
    _C.second_moment_accumulate(out.data_ptr(), _source(g), _source(a), offsets.tolist(), torch.get_num_threads())


def _source(x: Tensor) -> tuple[int, int, int, int, int]:
    return x.data_ptr(), _DTYPES[x.dtype], x.shape[1], x.stride(0), x.stride(1)


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
