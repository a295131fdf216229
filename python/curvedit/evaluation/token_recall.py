"""Token recall: the share of suffix tokens that a model gets right, given the true ones before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from curvedit.evaluation.measure import Run
from curvedit.evaluation.passage_measure import PassageMeasure
from curvedit.report import Meaning, Metric


@dataclass(frozen=True, eq=False)
class TokenRecall(PassageMeasure):
    """``right``: the share of suffix tokens that are the likeliest; ``near``: passages at 75 %.

    Both are teacher-forced: a wrong token does not derail those after it, so they fall more gently
    than recitation, and are equal for greedy decoding and for reading only where all is right. Each
    token has the same weight in ``right``; the intervals are over passages.
    """

    meanings: ClassVar[Mapping[str, Meaning]] = {
        "right": Meaning(
            "Suffix tokens right",
            "share",
            "lower",
            "suffix tokens that are the likeliest, given the true ones before them",
            units="passages",
            headline=False,
        ),
        "near": Meaning(
            "Near passages",
            "share",
            "lower",
            "passages of which at least 75 % of the suffix tokens are right",
            units="passages",
            headline=False,
        ),
    }

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Read every passage and count."""
        right = self.of_suffixes(self.read(model, run).right)
        count = np.array([each.sum() for each in right], dtype=np.float64)
        length = np.array([len(each) for each in right], dtype=np.float64)
        run.tell("passages", "right", np.round(count / length, 4).tolist())
        return {
            "right": run.interval(count, length),
            "near": run.interval(4 * count >= 3 * length),
        }
