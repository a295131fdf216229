"""Extraction strength: how little of a passage brings out the rest of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import nn

from curvedit.evaluation.measure import Run
from curvedit.evaluation.passage_measure import PassageMeasure
from curvedit.report import Meaning, Metric


@dataclass(frozen=True, eq=False)
class ExtractionStrength(PassageMeasure):
    """``extraction_strength``: ``1 - k / n``, averaged over passages.

    k is the smallest number of tokens, of the n after a passage's first, from which greedy decoding
    gives all the rest. It is read off one teacher-forced pass: k is the place of the last wrong
    token. 1 means that the first token brings out everything, 0 that not even the last is right.
    Prefix and suffix count alike; where the passage is cut does not matter.

    Source:
        Carlini et al., arXiv:2012.07805; as a share in Wang et al., arXiv:2406.09179.
    """

    whole: ClassVar[bool] = True
    meanings: ClassVar[Mapping[str, Meaning]] = {
        "extraction_strength": Meaning(
            "Extraction strength",
            "number",
            "lower",
            "1 less the share of a passage from which the rest follows greedily",
            units="passages",
            digits=3,
            headline=False,
        )
    }

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Read every passage and find its last wrong token."""
        values = [strength(right) for right in self.read(model, run).right]
        run.tell("passages", "extraction_strength", np.round(values, 4).tolist())
        return {"extraction_strength": run.interval(values)}


def strength(right: npt.NDArray[np.bool_]) -> float:
    """Extraction strength of one passage, from whether each token after its first is right."""
    wrong = np.flatnonzero(~right)
    return 1.0 - (int(wrong[-1]) + 1 if len(wrong) else 0) / len(right)
