"""Stage 4, evaluate: what was forgotten and what was kept."""

from curvedit.evaluation.recitation import recites
from curvedit.evaluation.running import evaluate
from curvedit.evaluation.suite import Passages, Suite

__all__ = ["Passages", "Suite", "evaluate", "recites"]
