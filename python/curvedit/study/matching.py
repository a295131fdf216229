"""The strength at which an edit forgets as much as the others, so that prices can be compared."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

_FIRST, _STRIDE = 6.0, 3.0  # halvings: where the search begins, and its first step
_NEARBY = 0.5  # its first step from a strength that is likely to be close
_MOST, _LEAST = 0.25, 26.0  # halvings of the strongest and the weakest edit tried
_CLOSE = 0.02  # of the share wanted


@dataclass
class Match:
    """A strength that was searched for: halvings, the share found there, and all tries."""

    wanted: float
    tried: dict[float, float] = field(default_factory=dict)  # halvings to share right

    @property
    def halvings(self) -> float:
        """Those whose share is nearest to the one wanted; the weaker edit of two."""
        return min(self.tried, key=lambda at: (abs(self.tried[at] - self.wanted), -at))

    @property
    def found(self) -> float:
        """The share right there."""
        return self.tried[self.halvings]

    @property
    def strength(self) -> float:
        """The strength there."""
        return strength_of(self.halvings)


def strength_of(halvings: float) -> float:
    """``2^-halvings``."""
    return float(2.0**-halvings)


def match(
    share: Callable[[float], float],
    wanted: float,
    *,
    near: float | None = None,
    tries: int = 9,
) -> Match:
    """Find the strength at which the share of tokens right has come down to ``wanted``.

    The share grows with the halvings of the strength, apart from jumps: gallop until it is
    bracketed, then go where a straight line between the ends has it, never to the ends themselves.

    Args:
        share: Gives the share right of an edit of a strength.
        wanted: The share wanted.
        near: A strength that is likely to be close.
        tries: The most edits to try.

    Returns:
        All that was tried; its ``strength`` came nearest.
    """
    found = Match(wanted)
    at, stride = (_FIRST, _STRIDE) if near is None else (-math.log2(near), _NEARBY)
    for _ in range(tries):
        found.tried[at] = share(strength_of(at))
        if abs(found.tried[at] - wanted) <= _CLOSE:
            break
        low = max((x for x, value in found.tried.items() if value < wanted), default=None)
        high = min((x for x, value in found.tried.items() if value > wanted), default=None)
        if low is None or high is None or low > high:
            following = at - stride if found.tried[at] > wanted else at + stride
            stride *= 1.5
        else:
            rise = found.tried[high] - found.tried[low]
            part = (wanted - found.tried[low]) / rise
            following = low + min(max(part, 0.2), 0.8) * (high - low)
        following = min(max(following, _MOST), _LEAST)
        if following in found.tried:
            break
        at = following
    return found
