"""What keeping a share costs: the KL divergence that removing all other components leads to.

To second order that is ``1/2 sum lambda_i mu_j C_ij^2`` over the removed components, in nats per
position: the factors are moments of scores, so their product approximates the Fisher information,
which is the second derivative of the divergence. The sum is tabulated by the components' curvature,
a few thousand numbers per target, so that any share can be priced.

The factors take layers, positions, and inputs and gradients for independent. They are not: the
measured divergence of light edits of a well-fitted model was about twice the sum, whatever the
layers, and up to four times where edits were heavy. ``RATIO`` makes up for the former. Factors of
too little data take for flat what they have not seen, and there it was up to ten times the sum
(docs/forgetting.md): the expectation is one of magnitude. With held-out text the divergence is
measured instead, from the expectation on (``search.py``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curvedit.factors import Factors

RATIO = 2.0  # of the divergence to the sum, where edits are light
_OCTAVES = (-400, 200)  # of curvature; float64 reaches further, no loss does
_FINE = 16  # bins per octave
_ROWS = 1 << 22  # elements tabulated at a time
_ROUNDS = 60  # of a bisection

Bins = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Price:
    """Mass and cost of a target's components, by curvature: ascending bins."""

    mass: Bins
    cost: Bins

    def __add__(self, other: "Price") -> "Price":
        """The same of the components of both."""
        return Price(self.mass + other.mass, self.cost + other.cost)

    def of(self, share: float) -> float:
        """The cost of keeping this share of the mass; within a bin, in proportion."""
        removed = np.concatenate(([0.0], self.mass.cumsum()))
        costs = np.concatenate(([0.0], self.cost.cumsum()))
        return float(np.interp((1.0 - share) * removed[-1], removed, costs))


def price_of(
    factors: Factors,
    name: str,
    weight: Tensor,  # (d_out, d_in)
) -> Price:
    """Tabulate one target. Forms its components, (d_out, d_in) float32."""
    out, inputs = factors.basis("G", name), factors.basis("A", name)
    components = out.vectors.T @ weight.detach().float().cpu() @ inputs.vectors
    often = factors.frequency(name)
    first, last = _OCTAVES
    mass, cost = (torch.zeros((last - first) * _FINE, dtype=torch.float64) for _ in range(2))
    rows = max(1, _ROWS // len(inputs.values))
    for start in range(0, len(out.values), rows):
        curvature = often * torch.outer(out.values[start : start + rows], inputs.values)
        bins = ((curvature.log2() - first) * _FINE).clamp(0, len(mass) - 1).long().flatten()
        costs = curvature * components[start : start + rows].double().square() / 2
        mass.index_add_(0, bins, curvature.flatten())
        cost.index_add_(0, bins, costs.flatten())
    return Price(mass.numpy(), cost.numpy())


def share_within(prices: Sequence[Price], budget: float) -> tuple[float, float]:
    """The smallest share that every price's target can keep within a budget.

    Args:
        prices: One per target that keeps the share of its own mass.
        budget: Divergence allowed for all of them, in nats per position.

    Returns:
        The share, and the divergence it is expected to cost.
    """
    low, high = 0.0, 1.0
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (low, middle) if expected_kl(prices, middle) <= budget else (middle, high)
    return high, expected_kl(prices, high)


def expected_kl(prices: Sequence[Price], share: float) -> float:
    """The divergence that keeping a share is expected to cost, in nats per position."""
    return RATIO * sum(price.of(share) for price in prices)


def lightest_share(
    spectra: Sequence[tuple[Tensor, Tensor]],  # (d_out,) and (d_in,) float64, descending
    *,
    together: bool,
) -> float:
    """The largest share that leaves anything out: the flattest component, and those as flat.

    Args:
        spectra: Eigenvalues of the output and input factor of each target, not all zero.
        together: Whether the share is one of all targets' mass, or of each target's own.
    """
    flattest = [float(lam[-1] * mu[-1]) for lam, mu in spectra]
    totals = [float(lam.sum() * mu.sum()) for lam, mu in spectra]
    if together:
        part = min(flattest) / sum(totals)
    else:
        part = min(each / total for each, total in zip(flattest, totals, strict=True))
    return math.nextafter(1.0 - part, 0.0)
