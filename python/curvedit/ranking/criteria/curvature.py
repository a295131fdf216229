"""Criteria ``curvature`` and ``weighted``: scores ``lambda_i mu_j``, from spectra of the factors.

``curvature`` (the paper) uses the plain factors, ``weighted`` the norm-weighted ones.

Source: Merullo et al., arXiv:2510.24256, section 5.
"""

from functools import partial

from curvedit.ranking.criteria.criterion import Criterion, NoCurvatureError, Request
from curvedit.ranking.thresholds import ProductScores
from curvedit.selection import Kinds


def _scores(kinds: Kinds, request: Request) -> ProductScores:
    lam, mu = (request.factors.spectrum(kind, request.name) for kind in kinds)
    scores = ProductScores(lam, mu)
    if not scores.total > 0.0:
        raise NoCurvatureError(request.name)
    return scores


_PLAIN, _WEIGHTED = ("G", "A"), ("G_w", "A_w")
CURVATURE = Criterion("curvature", _PLAIN, partial(_scores, _PLAIN))
WEIGHTED = Criterion("weighted", _WEIGHTED, partial(_scores, _WEIGHTED))
