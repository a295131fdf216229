"""Criterion ``ekfac``: the components' own curvature, as the fit's second pass measured it.

Source: George et al. 2018, arXiv:1806.03884.
"""

from curvedit.ranking.criteria.criterion import Criterion, NoCurvatureError, Request
from curvedit.ranking.thresholds import TableScores


def _scores(request: Request) -> TableScores:
    scores = TableScores(request.factors.corrections(request.name))
    if not scores.total > 0.0:
        raise NoCurvatureError(request.name)
    return scores


EKFAC = Criterion("ekfac", ("G", "A"), _scores)
