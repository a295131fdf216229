"""nDCG@10: how well a model's most likely next tokens agree with the unedited model's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import nn

from curvedit.evaluation.measure import Run
from curvedit.evaluation.text import TextMeasure
from curvedit.evaluation.text_reference import reference_of
from curvedit.report import Meaning, Metric

_POSITIONS = 4096  # graded at once


@dataclass(frozen=True, eq=False)
class NDCG(TextMeasure):
    """``ndcg10``: mean nDCG@10 of the top tokens, graded by the baseline's; interval over windows.

    A baseline is its own reference and scores exactly 1.

    Source:
        Järvelin and Kekäläinen 2002; Merullo et al., arXiv:2510.24256, appendix C and its code.
    """

    own_name: ClassVar[str] = "ndcg_text"
    depth: ClassVar[int] = 10
    meanings: ClassVar[Mapping[str, Meaning]] = {
        "ndcg10": Meaning(
            "nDCG@10",
            "number",
            "higher",
            "agreement of the top ten next tokens with the unedited model",
            digits=3,
            headline=False,
        )
    }

    def measure(self, model: nn.Module, run: Run) -> dict[str, Metric]:
        """Read the text and compare the top tokens with the baseline's reference."""
        text = self.read(model, run)
        reference = reference_of(text, run, self.name(run))
        sums = ndcg_sums(text.top, reference.top, text.tokens)
        counted = text.tokens > 0
        return {"ndcg10": run.interval(sums[counted], text.tokens[counted])}


def ndcg_sums(
    top: npt.NDArray[np.int32],  # (positions, K) of the measured model, best first
    reference: npt.NDArray[np.int32],  # (positions, K) of the baseline, best first
    tokens: npt.NDArray[np.int64],  # (windows,) positions in each
) -> npt.NDArray[np.float64]:
    """nDCG@K of a model's top tokens, graded by the baseline's, summed over each window.

    A token gains K minus its rank (from 0) among the baseline's top K, or 0. Gains are discounted
    by ``log2(2 + rank)`` in the measured model's list and normalised by the baseline's own order,
    so a model with the same list scores exactly 1.

    Returns:
        One sum per window, (windows,).
    """
    depth = reference.shape[1]
    grades = np.arange(depth, 0, -1, dtype=np.float64)
    pieces = (np.array_split(ids, len(ids) // _POSITIONS + 1) for ids in (top, reference))
    each = np.concatenate(
        [
            _discounted(((mine[:, :, None] == theirs[:, None, :]) * grades).sum(2))
            for mine, theirs in zip(*pieces, strict=True)
        ]
    )
    each /= _discounted(grades[None])
    ends = np.cumsum(tokens)
    return np.array([part.sum() for part in np.split(each, ends[:-1])])


def _discounted(gains: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """DCG of each row, added in the same order for every row."""
    total = np.zeros(gains.shape[0])
    for rank in range(gains.shape[1]):
        total += gains[:, rank] / math.log2(rank + 2)
    return total
