"""Stage 2, rank: Factors in, a Selection out, which says which components to keep."""

from curvedit.ranking.criteria import CRITERIA
from curvedit.ranking.stage import SCOPES, choose_targets, rank, require_possible

__all__ = ["CRITERIA", "SCOPES", "choose_targets", "rank", "require_possible"]
