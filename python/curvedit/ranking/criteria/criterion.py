"""What a criterion is: a name, the bases it selects in, and the scores of a target's components."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from curvedit.factors import Factors
from curvedit.ranking.thresholds import Scores
from curvedit.selection import Kinds


@dataclass(frozen=True)
class Request:
    """One target to be ranked."""

    factors: Factors
    name: str
    number: int  # its place among the targets
    weight: Tensor | None  # (d_out, d_in), for criteria that read it
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        return self.factors.targets[self.name].shape


@dataclass(frozen=True)
class Criterion:
    """A way to score weight components."""

    name: str
    kinds: (
        Kinds | None
    )  # of the factors whose bases it selects in; None for the weight's singular vectors
    scores: Callable[[Request], Scores]
    spans_targets: bool = True  # whether scores of several targets are ComparableScores
    reads_weights: bool = False
    is_random: bool = False


def no_curvature(name: str) -> ValueError:
    """The error for a target whose scores are all zero."""
    return ValueError(
        f"factors: {name!r} has no curvature at all (an all-zero factor); the loss does not depend on it. "
        "Leave it out with targets="
    )
