"""The type of a criterion: a request for one target in, the scores of its components out."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from curvedit.factors import Factors
from curvedit.ranking.thresholds import Scores
from curvedit.selection import Kinds


@dataclass(frozen=True)
class Request:
    """A request to rank one target."""

    factors: Factors
    name: str
    number: int  # its index among the targets
    weight: Tensor | None  # (d_out, d_in), for criteria that read it
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        """The weight's shape ``(d_out, d_in)``."""
        return self.factors.targets[self.name].shape


@dataclass(frozen=True)
class Criterion:
    """A way to score weight components."""

    name: str
    kinds: Kinds | None  # factors whose bases it selects in; None: the weight's singular vectors
    scores: Callable[[Request], Scores]
    spans_targets: bool = True  # whether it yields ComparableScores
    reads_weights: bool = False
    is_random: bool = False


class NoCurvatureError(ValueError):
    """Targets have no curvature: all their scores are zero."""

    def __init__(self, *names: str) -> None:
        """Name them."""
        self.names = names
        has = "has" if len(names) == 1 else "have"
        subject = f"{', '.join(map(repr, names))} {has} no curvature"
        patterns = " ".join(map(repr, names))
        super().__init__(
            f"factors: {subject}: all scores are zero, because the loss does not depend on "
            f"{'it' if len(names) == 1 else 'them'} on this data, so nothing says what to keep; "
            f"leave out with --skip {patterns}, in Python skip={list(names)}"
        )
