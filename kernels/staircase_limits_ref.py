"""Reference of ``staircase_limits``: sort every product."""

import math
import sys

import torch
from torch import Tensor


def staircase_limits(
    lam: Tensor,  # (m,) float64, descending
    mu: Tensor,  # (n,) float64, descending
    keep_mass: float,
) -> tuple[Tensor, float, int, float]:
    """Return limits (m,) int32, the smallest kept product, the number kept and the share kept."""
    (lam, up), (mu, along) = _scaled(lam), _scaled(mu)
    products = (lam[:, None] * mu).flatten()
    ordered, order = products.sort(descending=True, stable=True)
    mass = ordered.cumsum(0)
    target = keep_mass * mass[-1]
    kept = int((mass < target).sum()) + 1 if mass[-1] > 0 else 0
    kept = len(ordered) if keep_mass >= 1 else kept
    mask = torch.zeros_like(products, dtype=torch.bool)
    mask[order[:kept]] = True
    limits = mask.reshape(len(lam), len(mu)).sum(1).int()
    share = float(mass[kept - 1] / mass[-1]) if kept else 0.0
    return (
        limits,
        _unscaled(float(ordered[kept - 1]), up + along) if kept else math.inf,
        kept,
        1.0 if keep_mass >= 1 else share,
    )


def _scaled(spectrum: Tensor) -> tuple[Tensor, int]:
    """The spectrum over the power of two above its largest value, and that power's exponent."""
    exponent = math.frexp(float(spectrum[0]))[1]
    half = exponent // 2  # the power itself may be no double
    return spectrum * 2.0**-half * 2.0 ** (half - exponent), exponent


def _unscaled(product: float, exponent: int) -> float:
    """The product in the spectra's own unit, or the nearest positive double."""
    try:
        return max(math.ldexp(product, exponent), math.ulp(0.0)) if product > 0 else product
    except OverflowError:
        return sys.float_info.max
