"""Stage 4, evaluate: a model and a Suite become a Report of what was forgotten and what was kept."""

from curvedit.causality import CausalityError
from curvedit.evaluation.decoding import greedy_continuations, recites
from curvedit.evaluation.stage import evaluate
from curvedit.evaluation.suite import Passages, Suite

__all__ = [
    "CausalityError",
    "Passages",
    "Suite",
    "evaluate",
    "greedy_continuations",
    "recites",
]
