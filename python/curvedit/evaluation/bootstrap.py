"""95 % percentile bootstrap intervals (Efron 1979) of ratios of sums, resampling whole samples."""

from collections.abc import Callable
from typing import Any

import numpy as np

from curvedit.report import Estimate

Array = np.ndarray[Any, np.dtype[np.float64]]


def ratio(
    numerators: Array,  # (n,) one per sample
    denominators: Array,  # (n,)
    *,
    resamples: int,
    then: Callable[[Any], Any] = lambda value: value,
) -> Estimate:
    """``then(sum numerators / sum denominators)`` with its interval; the same for the same input."""
    size = len(numerators)
    value = float(then(numerators.sum() / denominators.sum()))
    draws = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=resamples)
    spread = then((draws @ numerators) / (draws @ denominators))
    low, high = np.percentile(spread, [2.5, 97.5])
    return Estimate(value, min(float(low), value), max(float(high), value))


def mean(values: Array, *, resamples: int) -> Estimate:
    """The mean with its interval."""
    return ratio(values, np.ones_like(values), resamples=resamples)
