"""The steps of a targeted edit: gradients in, steps within a budget of damage out.

The damage of a change grows with the square of its length, so equal steps take its root up by equal
amounts: from ``r`` to ``r + 1 / n``, in units of the root of the budget. The factors take layers
and positions for independent. Under one loss they are not, and the damage is many times what the
factors predict, but by a ratio that hardly changes along a step or from step to step. It is
measured on held-out data: a first length that misses its damage by far is corrected, and each step
begins with the ratio of the last.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvedit.editing import Damage, Unedited
from curvedit.factors import Factors
from curvedit.forgetting.outcome import Bounds, Recited, Step
from curvedit.forgetting.preconditioning import Parabola, direction
from curvedit.forgetting.subject import Subject
from curvedit.forgetting.weights import Weights
from curvedit.meter import progress

_TRIES = 8  # lengths of one step
_USED = 0.9  # of the budget, from which on it is used up
_CAUTION = 0.95  # of the budget, aimed at by the last step
_CLOSE = (0.5, 1.3)  # times the damage aimed at, within which a length is taken
_PRIOR = 10.0  # ratio per target before any is measured; the targets move together
_FARTHEST = 4.0  # times a length that was too short
_INSIDE = 0.2  # of the way between too short and too long, from either
_ROUNDS = 3  # times the number of steps that are taken at most, should they cost less than expected


@dataclass
class Descent:
    """Steps against the passages, until they are forgotten or the budget is used."""

    factors: Factors
    subject: Subject
    weights: Weights
    budget: float  # nats per position
    bounds: Bounds
    damping: float  # of the curvature, in units of its mean
    count: int  # steps to the budget
    steps: list[Step] = field(default_factory=list)
    ratio: float = 0.0  # of measured to predicted damage; 0 before the first step
    stopped: str = ""  # why
    unedited: Unedited = field(init=False)

    def __post_init__(self) -> None:
        self.unedited = self.subject.unedited(self.weights)

    def run(self, shares: Tensor, gradients: Mapping[str, Tensor]) -> None:
        """Take steps.

        Args:
            shares: Share of tokens right of each passage before any step.
            gradients: Of the targets' weights, before any step.

        Raises:
            ValueError: even the smallest step costs more than the budget.
        """
        recited = shares >= self.bounds.near
        now = Recited.of(shares, recited, self.bounds)
        kinds = [(kind, name) for name in gradients for kind in ("G", "A")]
        self.factors.decompose(kinds, progress=self.subject.shows_progress)
        self.ratio = self.ratio or _PRIOR * len(gradients)
        for _ in range(_ROUNDS * self.count):
            spent = self.steps[-1].measured if self.steps else 0.0
            if now.is_forgotten:
                break
            if spent >= _USED * self.budget:
                self.stopped = "budget used"
                return
            level = ((spent / self.budget) ** 0.5 + 1 / self.count) ** 2 * self.budget
            steps, damage = self._directions(gradients)
            tried = self._tried(steps, damage, spent, min(level, _CAUTION * self.budget))
            self.weights.keep(steps, tried.length)
            del steps
            if not tried.length:
                self.stopped = "budget used"
                return
            gaps, gradients = self.subject.differentiate()
            now = Recited.of(gaps.shares, recited, self.bounds)
            predicted, measured = damage(tried.length), tried.damage
            self.ratio = measured.nats / predicted
            self.steps.append(
                Step(predicted, tried.expected, measured.nats, measured.loss, tried.number, now)
            )
        self.stopped = "forgotten" if now.is_forgotten else "steps used"

    def _directions(self, gradients: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Parabola]:
        steps, damage = {}, Parabola()
        what, shown = "rotate", self.subject.shows_progress
        with (
            torch.no_grad(),
            progress(len(gradients), unit="target", what=what, shown=shown) as bar,
        ):
            for name, gradient in gradients.items():
                steps[name], its = direction(
                    self.factors, name, gradient, self.weights.changes[name], self.damping
                )
                damage += its
                bar.update()
        return steps, damage

    def _tried(
        self, steps: Mapping[str, Tensor], damage: Parabola, spent: float, level: float
    ) -> "_Tried":
        """Apply a step of about this damage, or of less; none where all cost more than the budget.

        Lengths are corrected by the secant of the damage's root, between the longest that is too
        short and the shortest that is too long.

        Raises:
            ValueError: it is the first step, and even the smallest costs more than the budget.
        """
        length, short, long = damage.length_to(level / self.ratio), 0.0, math.inf
        best: _Tried | None = None
        known = shown = self.ratio
        least, most = (share * level for share in _CLOSE)
        for number in range(1, _TRIES + 1):
            self.weights.apply(steps, length)
            measured = self.subject.damage(self.unedited)
            if number == 2 and not self.steps:  # the first try has shown more than was known
                known = shown
            if measured.nats <= min(most, self.budget):
                best = _Tried(length, number, known * damage(length), measured)
                if measured.nats >= least:
                    return best
                short = length
            else:
                long = length
            shown = measured.nats / damage(length)
            risen = max(measured.nats, 0.0) ** 0.5 - spent**0.5
            wanted = length * (level**0.5 - spent**0.5) / risen if risen > 0 else math.inf
            if math.isinf(long):
                length = min(wanted, _FARTHEST * length)
            else:
                margin = _INSIDE * (long - short)
                length = min(max(wanted, short + margin), long - margin)
        if best is None and not self.steps:
            raise ValueError(
                f"budget: expected one that some step keeps to, got {self.budget:g} nats, while "
                f"the smallest of {_TRIES} tried costs {measured.nats:.3g}; allow more, or load "
                "the model in a wider dtype"
            )
        best = best or _Tried(0.0, _TRIES, 0.0, measured)
        self.weights.apply(steps, best.length)
        return best


@dataclass(frozen=True)
class _Tried:
    """A step that was applied."""

    length: float  # 0 if there is none
    number: int  # lengths tried
    expected: float  # damage, by the ratio of the step before, or of the first try
    damage: Damage
