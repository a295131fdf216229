"""Stage 4, evaluate: a model and a Suite become a Report of what was forgotten and what was kept."""

from curvedit.evaluation.decoding import greedy_continuations, recites
from curvedit.evaluation.stage import evaluate
from curvedit.evaluation.suite import Passages, Suite
from curvedit.models import CausalityError

__all__ = [
    "CausalityError",
    "Passages",
    "Suite",
    "evaluate",
    "greedy_continuations",
    "recites",
]
