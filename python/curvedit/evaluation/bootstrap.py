"""Percentile bootstrap intervals of means and of ratios of sums."""

import numpy as np
import numpy.typing as npt

from curvedit.report import Metric, Units

Array = npt.NDArray[np.float64]

LEVEL = 0.95
_DRAWS = 1 << 22  # multinomial counts held at once


def ratio(
    numerator: npt.ArrayLike,  # (n,)
    denominator: npt.ArrayLike | None = None,  # (n,) positive; None for ones, the mean
    *,
    resamples: int,
    seed: int,
) -> Metric:
    """``sum(numerator) / sum(denominator)`` with its 95 % percentile bootstrap interval.

    The units (passages, windows, images) are drawn with replacement. Where all units are equal,
    for example because every passage is recited, the interval is a point: the sample shows no
    spread, which still leaves the true value uncertain by about ``3 / n``.

    Args:
        numerator: One value per unit.
        denominator: One weight per unit.
        resamples: Number of bootstrap samples.
        seed: Seeds the resampling; no global generator is touched.

    Returns:
        The metric, with its units.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    top = np.asarray(numerator, dtype=np.float64)
    bottom = np.ones_like(top) if denominator is None else np.asarray(denominator, dtype=np.float64)
    value = float(top.sum() / bottom.sum())
    drawn = _resampled(np.stack([top, bottom], axis=1), resamples, np.random.default_rng(seed))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [tail, 1 - tail])
    return Metric(value, float(low), float(high), Units(top, bottom))


def paired_difference(before: Units, after: Units, *, resamples: int, seed: int) -> Metric | None:
    """A metric of one model less that of another, with its 95 % paired bootstrap interval.

    Each resample draws the same units for both, so that what makes a unit hard for both models
    cancels; the interval is the difference's own, and narrower than the two intervals suggest.

    Args:
        before: What the first model's metric was averaged from.
        after: The same units of the second.
        resamples: Number of bootstrap samples.
        seed: Seeds the resampling.

    Returns:
        The difference; None if the units are not the same number.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3, on pairs.
    """
    if len(before.numerator) != len(after.numerator):
        return None
    columns = [before.numerator, before.denominator, after.numerator, after.denominator]
    units = np.stack(columns, axis=1)
    drawn = _resampled(units, resamples, np.random.default_rng(seed))
    sums = np.concatenate([units.sum(0, keepdims=True), drawn])
    sides = sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]
    first, second = (
        np.exp(side) if part.exponential else side
        for side, part in zip(sides, (before, after), strict=True)
    )
    each = second - first
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(each[1:], [tail, 1 - tail])
    return Metric(float(each[0]), float(low), float(high))


def _resampled(units: Array, resamples: int, generator: np.random.Generator) -> Array:
    """Sums over bootstrap samples, (resamples, 2).

    Equal units are drawn together, as multinomial counts. The distribution is the same, and it is
    cheap for outcomes that are right or wrong.
    """
    kinds, counts = np.unique(units, axis=0, return_counts=True)
    share = counts / counts.sum()
    step = max(1, _DRAWS // len(kinds))
    sums = [
        generator.multinomial(len(units), share, size=min(step, resamples - start)) @ kinds
        for start in range(0, resamples, step)
    ]
    return np.concatenate(sums)
