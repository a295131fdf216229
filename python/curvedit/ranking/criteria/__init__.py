"""The criteria: one file for each, or for each family. A new one is a file here and a row below."""

from curvedit.ranking.criteria.controls import RANDOM, SVD
from curvedit.ranking.criteria.criterion import Criterion, Request
from curvedit.ranking.criteria.curvature import CURVATURE, WEIGHTED
from curvedit.ranking.criteria.ekfac import EKFAC

CRITERIA: dict[str, Criterion] = {
    each.name: each for each in (CURVATURE, WEIGHTED, EKFAC, SVD, RANDOM)
}

__all__ = ["CRITERIA", "Criterion", "Request"]
