"""Stage 2, rank: Factors become a Selection of the components to keep."""

from curvedit.ranking.criteria import CRITERIA
from curvedit.ranking.stage import SCOPES, rank

__all__ = ["CRITERIA", "SCOPES", "rank"]
