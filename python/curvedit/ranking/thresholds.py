"""Finds the smallest set of components whose scores sum to a given share of the total.

A criterion gives every component ``(i, j)`` of a target a score. Scores that are products of two
spectra remain two vectors and keep a staircase; all others are a table and keep a mask. Both know
the mass above a threshold, so that one bisection finds the common threshold of several targets.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from curvedit.ops import choose


@dataclass(frozen=True)
class Kept:
    """The components of one target that are kept: either a staircase or a mask."""

    limits: Tensor | None  # (d_out,) int32, the staircase
    mask: Tensor | None  # (d_out, ceil(d_in / 8)) uint8, packed bits
    threshold: float  # the smallest kept score
    number: int  # of kept components
    mass: float  # kept share of the total score
    spectra: tuple[Tensor, Tensor] | None = None  # whose products are the scores, if so


class Scores(Protocol):
    """The scores of one target's components."""

    def keep(self, share: float) -> Kept:
        """Keep the smallest set, highest scores first, whose mass reaches the share.

        Ties are resolved row by row.
        """


class ComparableScores(Scores, Protocol):
    """Scores in units common to all targets, so that several can share one threshold."""

    total: float

    @property
    def largest(self) -> float:
        """The largest score."""

    def mass_above(self, threshold: float) -> float:
        """Return the sum of the scores that are at least the threshold."""

    def keep_above(self, threshold: float) -> Kept:
        """Keep every component whose score is at least the threshold."""


class ProductScores:
    """Scores ``lam_i mu_j``; no ``(d_out, d_in)`` array is formed."""

    def __init__(
        self,
        lam: Tensor,  # (d_out,) float64, descending, >= 0
        mu: Tensor,  # (d_in,), as lam
    ) -> None:
        """Score components by the products of these eigenvalues."""
        self.lam, self.mu = lam, mu
        self.total = float(lam.sum() * mu.sum())

    @property
    def largest(self) -> float:
        """The largest score."""
        return float(self.lam[0] * self.mu[0])

    @functools.cached_property
    def _sums(self) -> Tensor:
        """Sums of the first 0, 1, … eigenvalues ``mu``."""
        return torch.cat([self.mu.new_zeros(1), self.mu.cumsum(0)])

    def mass_above(self, threshold: float) -> float:
        """Return the sum of the scores that are at least the threshold."""
        return float((self.lam * self._sums[self._at_or_above(threshold)]).sum())

    def keep(self, share: float) -> Kept:
        """Keep the smallest set whose mass reaches the share."""
        limits, threshold, number, mass = choose("staircase_limits", self.lam, self.mu, share)(
            self.lam, self.mu, share
        )
        return Kept(limits, None, threshold, number, mass, (self.lam, self.mu))

    def keep_above(self, threshold: float) -> Kept:
        """Keep every component whose score is at least the threshold."""
        limits = self._at_or_above(threshold)
        mass = float((self.lam * self._sums[limits]).sum() / (self.lam.sum() * self.mu.sum()))
        spectra = self.lam, self.mu
        return Kept(limits.int(), None, threshold, int(limits.sum()), mass, spectra)

    def _at_or_above(self, threshold: float) -> Tensor:
        """Count the scores of each output eigenvector at or above the threshold: (d_out,) int64."""
        low = torch.zeros(self.lam.shape[0], dtype=torch.int64)
        high = torch.full_like(low, self.mu.shape[0])
        # Bisects on the products themselves: comparing mu with threshold / lam would round.
        while bool((low < high).any()):
            middle = (low + high) // 2
            above = self.lam * self.mu[middle.clamp(max=self.mu.shape[0] - 1)] >= threshold
            inside = low < high
            low = torch.where(inside & above, middle + 1, low)
            high = torch.where(inside & ~above, middle, high)
        return low


class TableScores:
    """Arbitrary scores, one per component."""

    def __init__(
        self,
        scores: Tensor,  # (d_out, d_in) float32, >= 0
    ) -> None:
        """Score components as in the table."""
        self.scores = scores.cpu()
        self.total = float(self.scores.sum(dtype=torch.float64))

    @property
    def largest(self) -> float:
        """The largest score."""
        return float(self.scores.max())

    @functools.cached_property
    def _ascending(self) -> tuple[Tensor, Tensor]:
        """The sorted scores, and for each the sum of those before it; then the sum of all."""
        values = self.scores.flatten().sort().values
        sums = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
        return values, sums

    def mass_above(self, threshold: float) -> float:
        """Return the sum of the scores that are at least the threshold."""
        values, sums = self._ascending
        first = torch.searchsorted(values, torch.tensor(_rounded_up(threshold)))
        return float(sums[-1] - sums[first])

    def keep(self, share: float) -> Kept:
        """Keep the smallest set whose mass reaches the share."""
        descending, order = self.scores.flatten().sort(descending=True, stable=True)
        cumulative = descending.double().cumsum(0)
        number = int(torch.searchsorted(cumulative, share * cumulative[-1])) + 1
        flags = torch.zeros(len(descending), dtype=torch.bool)
        flags[order[: len(descending) if share == 1.0 else number]] = True
        return self._kept(flags)

    def keep_above(self, threshold: float) -> Kept:
        """Keep every component whose score is at least the threshold."""
        return self._kept(self.scores.flatten() >= _rounded_up(threshold))

    def _kept(self, flags: Tensor) -> Kept:
        scores = self.scores.flatten()[flags]
        least = float(scores.min()) if len(scores) else float("inf")
        mass = float(scores.sum(dtype=torch.float64)) / self.total
        return Kept(None, packed(flags.view(self.scores.shape)), least, len(scores), mass)


def common_threshold(
    scores: Sequence[ComparableScores],
    often: Sequence[float],  # by target: what its scores are multiplied with to be compared
    share: float,
) -> float:
    """Return the largest threshold at which all targets together keep the share of their mass.

    A target keeps its scores from ``threshold / often`` on.

    Non-negative float64 numbers sort like their bit patterns, so bisecting the bits is exact. All
    components that tie with the threshold are kept, because rows of different targets have no
    natural order.
    """
    weighed = list(zip(scores, often, strict=True))
    wanted = share * sum(times * each.total for each, times in weighed)
    largest = max(times * each.largest for each, times in weighed)
    low, high = 0, int(np.float64(largest).view(np.int64))
    while low < high:
        middle = low + (high - low + 1) // 2
        threshold = float(np.int64(middle).view(np.float64))
        if sum(times * each.mass_above(threshold / times) for each, times in weighed) >= wanted:
            low = middle
        else:
            high = middle - 1
    return float(np.int64(low).view(np.float64))


def packed(flags: Tensor) -> Tensor:
    """Pack a bool tensor (rows, columns) into bits (rows, ceil(columns / 8)) uint8."""
    return torch.from_numpy(np.packbits(flags.numpy(), axis=1))


def _rounded_up(threshold: float) -> float:
    """Return the smallest float32 at or above the threshold; float32 scores compare the same."""
    rounded = np.float32(threshold)
    return float(
        rounded if float(rounded) >= threshold else np.nextafter(rounded, np.float32(np.inf))
    )
