"""Reference of ``staircase_limits``: sort every product."""

import math

import torch
from torch import Tensor


def staircase_limits(
    lam: Tensor,  # (m,) float64, descending
    mu: Tensor,  # (n,) float64, descending
    keep_mass: float,
) -> tuple[Tensor, float, int, float]:
    """Return limits (m,) int32, the smallest kept product, the number kept and the share kept."""
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
        float(ordered[kept - 1]) if kept else math.inf,
        kept,
        1.0 if keep_mass >= 1 else share,
    )
