"""Stage 2, rank: Factors in, a Selection out, which says which components to keep."""

from curvedit.ranking.criteria import CRITERIA
from curvedit.ranking.stage import SCOPES, rank

__all__ = ["CRITERIA", "SCOPES", "rank"]
