"""Extraction by sampling: how many tries a passage takes, from token probabilities."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from curvedit.evaluation.measure import Run
from curvedit.evaluation.passage_measure import PassageMeasure
from curvedit.evaluation.teacher_forcing import Sampling
from curvedit.report import Meaning, Metric

_USUAL = Sampling(top_k=40)


@dataclass(frozen=True, eq=False)
class SampledExtraction(PassageMeasure):
    """``extractable: N``: the share of passages that are (n, p)-discoverable in N samples.

    One sample gives the true suffix with the chance q, the product of its tokens' chances under the
    sampling. Of n samples at least one does with the chance ``1 - (1 - q)^n``; the passage counts
    if that reaches p. ``sampled`` is the mean of q. No text is sampled.

    Args:
        passages: Prefixes and their true suffixes.
        tries: The numbers n of samples.
        chance: The chance p.
        sampling: How tokens are drawn; by default the 40 likeliest at temperature 1.

    Raises:
        ValueError: there are no tries, one is below 1, or the chance is not between 0 and 1.
        TypeError: not :class:`Passages`.

    Source:
        Hayes et al., arXiv:2410.19482, section 3.
    """

    tries: tuple[int, ...] = (1, 100, 10_000)
    chance: float = 0.5
    sampling: Sampling = _USUAL

    meanings: ClassVar[Mapping[str, Meaning]] = {
        "sampled": Meaning(
            "Recited by a sample",
            "share",
            "lower",
            "chance that one sample of the model gives the whole suffix, averaged over passages",
            units="passages",
            headline=False,
        ),
        "extractable: {}": Meaning(
            "Extractable, n = {}",
            "share",
            "lower",
            "passages that {} samples give with at least the chance asked for",
            units="passages",
            headline=False,
        ),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tries or min(self.tries) < 1:
            raise ValueError(f"tries: expected numbers of at least 1, got {self.tries}")
        if not 0 < self.chance < 1:
            raise ValueError(f"chance: expected a number between 0 and 1, got {self.chance}")

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        """The sampling."""
        return (self.sampling,)

    @property
    def keys(self) -> tuple[str, ...]:
        """One key per number of tries, and the mean chance."""
        return ("sampled", *(f"extractable: {number}" for number in self.tries))

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Read every passage and multiply the chances of its tokens."""
        logs = self.of_suffixes(self.read(model, run).logs[self.sampling])
        total = np.array([each.sum() for each in logs])
        needed = [tries_needed(log, self.chance) for log in total]
        told = [None if math.isinf(each) else each for each in needed]
        run.tell("passages", "tries", told)
        found = {"sampled": run.interval(np.exp(total))}
        for number in self.tries:
            found[f"extractable: {number}"] = run.interval([each <= number for each in needed])
        return found


def tries_needed(log: float, chance: float) -> float:
    """The number of samples that give a text with a chance, each giving it with ``exp(log)``."""
    if log == -math.inf:
        return math.inf
    if log >= 0:
        return 1
    # log(1 - q), exact for tiny q too
    miss = math.log1p(-math.exp(log))
    return math.inf if miss == 0 else max(1, math.ceil(math.log1p(-chance) / miss - 1e-9))
