"""What forgetting costs: recitation and perplexity along the share of components removed.

Edits forget in jumps, at other shares on other machines, so that single edits compare badly. Here
each criterion has a curve, and its cost is read from the curve where a given share of the passages
is still recited.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from curvedit.evaluation import Passages, recites
from curvedit.models import device_of
from curvedit.projection import project
from curvedit.report import Metric
from curvedit.selection import Selection

Array = npt.NDArray[np.float64]

_MOST, _PER_OCTAVE, _STEPS = 0.5, 4, 44  # shares removed: 0.5, and smaller by 2^(1/4) each step
_HALVINGS = 3  # of the last step, to find the largest share that forgets
_WINDOWS = 32  # read at a time


@dataclass(frozen=True)
class Curve:
    """Edits of one criterion and draw, from many components removed to few."""

    first: int  # the step from which on it forgets, where another draw may begin
    steps: Array  # (points,) ascending: every fourth halves the share removed
    recited: Array  # (points, passages) 0 or 1
    read_steps: Array  # (readings,) ascending
    loss: Array  # (readings, windows) mean loss of each window less the unedited model's, nats
    selection: Selection  # the largest share, among those tried, that forgets

    def increase(self, level: float, passages: Array, windows: Array) -> float:
        """Rise of perplexity, as a share, where ``level`` of the passages is still recited.

        Args:
            level: Share of the passages.
            passages: Weight of each passage (passages,).
            windows: Weight of each window (windows,).
        """
        step = crossing(self.steps, self.recited @ (passages / passages.sum()), level)
        return float(
            np.expm1(np.interp(step, self.read_steps, self.loss @ windows / windows.sum()))
        )


class Search:
    """Tries edits of one model; ``select`` gives the one that keeps a share of the components."""

    def __init__(
        self,
        model: nn.Module,
        passages: Passages,
        text: Tensor,  # (windows, T) token ids
        *,
        level: float,
        tried: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.model, self.passages, self.text = model, passages, text
        self.level, self.tried = level, tried

    @cached_property
    def unedited(self) -> Array:
        """Mean loss of each window, (windows,)."""
        return window_losses(self.model, self.text)

    def curve(self, select: Callable[[float], Selection], near: int | None = None) -> Curve:
        """Edits around the one at which the passages are forgotten.

        Args:
            select: Gives the selection that keeps a share.
            near: A step at which another draw forgets; only the first needs its exact place.

        Raises:
            RuntimeError: no share forgets enough.
        """
        found: dict[float, Array] = {}

        def recited(step: float) -> Array:
            if step not in found:
                with project(self.model, select(_kept(step))):
                    found[step] = recites(self.model, self.passages).astype(np.float64)
                self.tried(1)
            return found[step]

        def forgets(step: float) -> bool:
            return bool(recited(step).mean() <= self.level)

        first = _bracket(forgets, near)
        around = range(max(0, first - 1), min(_STEPS, first + 5) + 1)
        for step in around:
            recited(step)
        last = max(step for step in found if forgets(step))
        for halving in range(1, _HALVINGS + 1 if near is None else 1):
            last += 2.0**-halving * forgets(last + 2.0**-halving)
        steps = np.array(sorted(found), dtype=np.float64)
        places = np.array(around[::3], dtype=np.float64)
        return Curve(
            first,
            steps,
            np.stack([found[step] for step in steps]),
            places,
            np.stack([self._loss(select(_kept(step))) for step in places]) - self.unedited,
            select(_kept(last)),
        )

    def _loss(self, selection: Selection) -> Array:
        with project(self.model, selection):
            self.tried(1)
            return window_losses(self.model, self.text)


def cost(curves: Sequence[Curve], *, level: float, resamples: int = 400, seed: int = 0) -> Metric:
    """Rise of perplexity where ``level`` of the passages is still recited: median over draws.

    The 95 % interval covers the draws, the passages and the windows: each resample takes one curve,
    and passages and windows with replacement.

    Args:
        curves: One per draw of the same criterion.
        level: Share of the passages.
        resamples: Number of bootstrap samples.
        seed: Seeds them.
    """
    passages, windows = curves[0].recited.shape[1], curves[0].loss.shape[1]
    generator = np.random.default_rng(seed)

    def weights(count: int) -> Array:
        return generator.multinomial(count, np.full(count, 1 / count)).astype(np.float64)

    drawn = [
        curves[number % len(curves)].increase(level, weights(passages), weights(windows))
        for number in range(resamples)
    ]
    each = [curve.increase(level, np.ones(passages), np.ones(windows)) for curve in curves]
    value = float(np.median(each))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Metric(value, min(value, float(low)), max(value, float(high)))


def crossing(steps: Array, recited: Array, level: float) -> float:
    """The step at which recitation, made to rise along the steps, passes ``level``."""
    risen = isotonic(recited)
    above = int(np.searchsorted(risen, level, side="right"))
    if above in (0, len(steps)):
        return float(steps[min(above, len(steps) - 1)])
    left, right = risen[above - 1], risen[above]
    share = (level - left) / (right - left)
    return float(steps[above - 1] + share * (steps[above] - steps[above - 1]))


def isotonic(values: Array) -> Array:
    """The nearest values, in squares, that never fall.

    Source:
        Pool adjacent violators: Barlow et al. 1972, Statistical Inference under Order Restrictions.
    """
    pools: list[tuple[float, int]] = []  # mean and number of the values pooled
    for value in values:
        mean, count = float(value), 1
        while pools and pools[-1][0] > mean:
            other, number = pools.pop()
            mean = (mean * count + other * number) / (count + number)
            count += number
        pools.append((mean, count))
    return np.concatenate([np.full(count, mean) for mean, count in pools])


@torch.no_grad()
def window_losses(
    model: nn.Module,
    text: Tensor,  # (windows, T)
) -> Array:
    """Mean loss of each window, (windows,) in nats per token."""
    found = []
    for part in text.split(_WINDOWS):
        ids = part.to(device_of(model))
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        terms = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        found.append(terms.view(len(ids), -1).mean(1))
    return torch.cat(found).double().cpu().numpy()


def _kept(step: float) -> float:
    return float(1 - _MOST * 2 ** (-step / _PER_OCTAVE))


def _bracket(forgets: Callable[[float], bool], near: int | None) -> int:
    """A step that forgets while the one an octave further does not, by bisection of octaves."""
    if near is not None:
        return next(step for step in range(near, -_PER_OCTAVE, -_PER_OCTAVE) if forgets(step))
    low, high = 0, _STEPS
    if not forgets(low):
        raise RuntimeError(f"demo: at most {100 * (1 - _MOST):g} % kept still recites the passages")
    while high - low > _PER_OCTAVE:
        middle = (low + high) // (2 * _PER_OCTAVE) * _PER_OCTAVE
        low, high = (middle, high) if forgets(middle) else (low, middle)
    return low
