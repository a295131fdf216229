"""Stage 2, rank: Factors in, a Selection of the components to keep out."""

from curvedit.ranking.criteria import CRITERIA
from curvedit.ranking.stage import SCOPES, rank

__all__ = ["CRITERIA", "SCOPES", "rank"]
