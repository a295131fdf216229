"""Recitation: how close greedy continuations come to the true suffixes."""

from collections.abc import Sequence

import numpy as np

from curvedit.evaluation.bootstrap import ratio
from curvedit.evaluation.suite import Ids
from curvedit.report import Metric


def recitation(
    continuations: Sequence[Ids], suffixes: Sequence[Ids], *, resamples: int, seed: int
) -> dict[str, Metric]:
    """``strict``, ``loose`` and ``avg_levenshtein`` of continuations, one per suffix.

    With the token-level Levenshtein distance d and the suffix length L: strict counts d = 0, loose
    counts 1 - d / L >= 0.75, and the mean of d / L is higher where less is recited.

    Source:
        Merullo et al., arXiv:2510.24256, section 5.1.
    """
    from rapidfuzz.distance import (
        Levenshtein,
    )  # here, so that kernels can be measured where it is missing

    pairs = zip(continuations, suffixes, strict=True)
    distance = np.array(
        [Levenshtein.distance(said, true) for said, true in pairs], dtype=np.float64
    )
    length = np.array([len(suffix) for suffix in suffixes], dtype=np.float64)
    units = {
        "strict": distance == 0,
        "loose": 4 * distance <= length,
        "avg_levenshtein": distance / length,
    }
    return {key: ratio(values, resamples=resamples, seed=seed) for key, values in units.items()}
