"""The criteria: from a target's factors to its components' scores. One file per family.

To add a criterion, add a file here and an entry to ``CRITERIA``.
"""

from curvedit.ranking.criteria.controls import RANDOM, SVD
from curvedit.ranking.criteria.criterion import Criterion, NoCurvatureError, Request
from curvedit.ranking.criteria.curvature import CURVATURE, WEIGHTED
from curvedit.ranking.criteria.ekfac import EKFAC

CRITERIA: dict[str, Criterion] = {
    each.name: each for each in (CURVATURE, WEIGHTED, EKFAC, SVD, RANDOM)
}

__all__ = ["CRITERIA", "Criterion", "NoCurvatureError", "Request"]
