"""The share that a measured divergence pays for, found in few measurements.

The predicted divergence orders the shares, and the measured one follows it by a ratio that changes
slowly. So the search runs in the logarithms of both: the first try trusts the prediction, further
ones follow the secant, and once a try costs too little and another too much, they lie between the
two: interpolated at first, halfway in the end.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curvedit.ranking.price import Price, expected_kl, share_within

TRIES = 8
_NEAR = 0.85  # of the budget, from which on a try is taken
_AIM = 0.93  # of the budget
_INTERPOLATED = 5  # tries; those after it halve the bracket
_MARGIN = 0.1  # of the bracket, on either side
_SLOPES = 0.1, 4.0  # of the secant, at the least and at the most
_FARTHEST = math.log(1e4)  # of one step


@dataclass(frozen=True)
class Try:
    """A share, and what its edit costs, in nats per position."""

    share: float
    asked: float  # divergence that the share was to be expected to cost
    expected: float  # 0 if only components without curvature go
    measured: float

    @property
    def x(self) -> float:
        """Logarithm of the expected divergence, on which the search runs."""
        return math.log(self.expected or self.asked)

    @property
    def y(self) -> float:
        """Logarithm of the measured divergence; rounding may take it to zero and below."""
        return math.log(self.measured) if self.measured > 0 else -math.inf


def share_by_measuring(
    prices: Sequence[Price],
    budget: float,
    lightest: float,
    measure: Callable[[float, int], float],
) -> Try:
    """Find the share whose edit costs the budget, or a little less.

    Args:
        prices: As for ``share_within``.
        budget: Divergence allowed, in nats per position.
        lightest: The largest share whose edit removes anything.
        measure: Gives the divergence that keeping a share costs; told the number of the try too.

    Returns:
        The first try within 15 % below the budget, or the nearest below it of at most 8.

    Raises:
        ValueError: even the lightest edit costs more.
    """
    tries: list[Try] = []
    asked = math.log(budget)
    for number in range(1, TRIES + 1):
        share = min(share_within(prices, math.exp(asked))[0], lightest)
        if number == TRIES and all(each.measured > budget for each in tries):
            share = lightest
        if any(each.share == share for each in tries):
            break  # everything goes, or the shares between two tries are used up
        expected = expected_kl(prices, share)
        found = Try(share, math.exp(asked), expected, measure(share, number))
        tries.append(found)
        if _NEAR * budget <= found.measured <= budget:
            return found
        if found.measured > budget and share == lightest:
            break
        asked = _next(tries, budget)
    within = [each for each in tries if each.measured <= budget]
    if not within:
        least = min(each.measured for each in tries)
        raise ValueError(
            f"keep_kl: expected at least {least:.3g} nats, the least that an edit of these targets "
            f"cost on the held-out text, got {budget:g}; allow more, or fit on more data"
        )
    return max(within, key=lambda each: (each.measured, each.x))


def _next(tries: Sequence[Try], budget: float) -> float:
    """Logarithm of the expected divergence to try next."""
    last, aim = tries[-1], math.log(_AIM * budget)
    low = max((each for each in tries if each.measured <= budget), key=_by_x, default=None)
    high = min((each for each in tries if each.measured > budget), key=_by_x, default=None)
    if low is None or high is None:
        slope = _slope(tries[-2], last) if len(tries) > 1 else 1.0
        step = (aim - last.y) / slope
        return last.x + min(max(step, -_FARTHEST), _FARTHEST)
    part = 0.5
    if len(tries) < _INTERPOLATED and high.y > low.y > -math.inf:
        part = (aim - low.y) / (high.y - low.y)
    return low.x + min(max(part, _MARGIN), 1 - _MARGIN) * (high.x - low.x)


def _slope(first: Try, second: Try) -> float:
    """Of the secant through two tries; 1 where it has none."""
    run, rise = second.x - first.x, second.y - first.y
    if not run or not math.isfinite(rise):
        return 1.0
    least, most = _SLOPES
    return min(max(rise / run, least), most)


def _by_x(each: Try) -> float:
    return each.x
