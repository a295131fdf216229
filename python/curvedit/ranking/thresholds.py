"""Scores of weight components, and the smallest set of them that holds a share of their mass.

A criterion gives every component ``(i, j)`` of a target a score. Scores that are products of two spectra stay
two vectors, and what they keep is a staircase; scores without such a form are a table, and what they keep a mask.
Either way scores know their threshold: one bisection serves all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from curvedit import ops


@dataclass(frozen=True)
class Kept:
    """The components of one target that are kept."""

    limits: Tensor | None  # (d_out,) int32, the staircase
    mask: Tensor | None  # (d_out, ceil(d_in / 8)) uint8, packed bits, where there is none
    threshold: float  # the smallest kept score
    number: int
    mass: float  # share of the total score


class Scores(Protocol):
    """The scores of one target's components."""

    def keep(self, share: float) -> Kept:
        """The smallest set, highest scores first, whose mass reaches the share; ties go row by row."""


class ComparableScores(Scores, Protocol):
    """Scores in units that all targets share, so that one threshold can serve several."""

    total: float
    largest: float

    def mass_above(self, threshold: float) -> float:
        """The sum of the scores that are at least the threshold."""

    def keep_above(self, threshold: float) -> Kept:
        """Every component whose score is at least the threshold."""


class ProductScores:
    """Scores ``lam_i mu_j``; no ``(d_out, d_in)`` array is formed."""

    def __init__(
        self,
        lam: Tensor,  # (d_out,) float64, descending, >= 0
        mu: Tensor,  # (d_in,), as lam
    ) -> None:
        """Scores of the components with these eigenvalues."""
        self.lam, self.mu = lam, mu
        self.total = float(lam.sum() * mu.sum())
        self.largest = float(lam[0] * mu[0])
        self._sums = torch.cat([mu.new_zeros(1), mu.cumsum(0)])

    def mass_above(self, threshold: float) -> float:
        """The sum of the scores that are at least the threshold."""
        return float((self.lam * self._sums[self._at_or_above(threshold)]).sum())

    def keep(self, share: float) -> Kept:
        """The smallest set whose mass reaches the share."""
        limits, threshold, number, mass = ops.choose("staircase_limits", self.lam, self.mu, share)(
            self.lam, self.mu, share
        )
        return Kept(limits, None, threshold, number, mass)

    def keep_above(self, threshold: float) -> Kept:
        """Every component whose score is at least the threshold."""
        limits = self._at_or_above(threshold)
        mass = float((self.lam * self._sums[limits]).sum() / (self.lam.sum() * self.mu.sum()))
        return Kept(limits.int(), None, threshold, int(limits.sum()), mass)

    def _at_or_above(self, threshold: float) -> Tensor:
        """Per output eigenvector, how many scores are at least the threshold: (d_out,) int64."""
        low = torch.zeros(self.lam.shape[0], dtype=torch.int64)
        high = torch.full_like(low, self.mu.shape[0])
        while bool(
            (low < high).any()
        ):  # the products themselves are compared, not mu with a rounded quotient
            middle = (low + high) // 2
            above = self.lam * self.mu[middle.clamp(max=self.mu.shape[0] - 1)] >= threshold
            inside = low < high
            low = torch.where(inside & above, middle + 1, low)
            high = torch.where(inside & ~above, middle, high)
        return low


class TableScores:
    """Scores without a form of their own: a table."""

    def __init__(
        self,
        scores: Tensor,  # (d_out, d_in) float32, >= 0
    ) -> None:
        """Scores as in the table."""
        self.scores = scores.cpu()
        self.total = float(self.scores.sum(dtype=torch.float64))
        self.largest = float(self.scores.max())
        self._ascending: tuple[Tensor, Tensor] | None = (
            None  # values, and sums of those before each
        )

    def mass_above(self, threshold: float) -> float:
        """The sum of the scores that are at least the threshold."""
        if self._ascending is None:
            values = self.scores.flatten().sort().values
            self._ascending = (
                values,
                torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)]),
            )
        values, sums = self._ascending
        return float(
            sums[-1] - sums[torch.searchsorted(values, torch.tensor(_rounded_up(threshold)))]
        )

    def keep(self, share: float) -> Kept:
        """The smallest set whose mass reaches the share."""
        descending, order = self.scores.flatten().sort(descending=True, stable=True)
        cumulative = descending.double().cumsum(0)
        number = int(torch.searchsorted(cumulative, share * cumulative[-1])) + 1
        flags = torch.zeros(len(descending), dtype=torch.bool)
        flags[order[: len(descending) if share == 1.0 else number]] = True
        return self._kept(flags)

    def keep_above(self, threshold: float) -> Kept:
        """Every component whose score is at least the threshold."""
        return self._kept(self.scores.flatten() >= _rounded_up(threshold))

    def _kept(self, flags: Tensor) -> Kept:
        scores = self.scores.flatten()[flags]
        least = float(scores.min()) if len(scores) else float("inf")
        mass = float(scores.sum(dtype=torch.float64)) / self.total
        return Kept(None, packed(flags.view(self.scores.shape)), least, len(scores), mass)


def common_threshold(scores: Sequence[ComparableScores], share: float) -> float:
    """Largest threshold at which the kept mass of all targets together reaches the share.

    Non-negative float64 sort like their bit patterns, so bisecting the bits is exact. Components
    that tie with it are all kept: across targets no order of rows is natural.
    """
    wanted = share * sum(each.total for each in scores)
    low, high = 0, int(np.float64(max(each.largest for each in scores)).view(np.int64))
    while low < high:
        middle = low + (high - low + 1) // 2
        if (
            sum(each.mass_above(float(np.int64(middle).view(np.float64))) for each in scores)
            >= wanted
        ):
            low = middle
        else:
            high = middle - 1
    return float(np.int64(low).view(np.float64))


def packed(flags: Tensor) -> Tensor:
    """A bool tensor (rows, columns) as packed bits (rows, ceil(columns / 8)) uint8."""
    return torch.from_numpy(np.packbits(flags.numpy(), axis=1))


def _rounded_up(threshold: float) -> float:
    """The smallest float32 that is at least the threshold: the same float32 scores are above both."""
    rounded = np.float32(threshold)
    return float(rounded if rounded >= threshold else np.nextafter(rounded, np.float32(np.inf)))
