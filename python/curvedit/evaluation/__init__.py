"""Stage 4, evaluate: a model and a Suite become a Report of what was forgotten and what was kept.

The measures: one file for each. A new one is a file here and a row below.
"""

from curvedit.data import Passages
from curvedit.evaluation.accuracy import Accuracy
from curvedit.evaluation.agreement import Agreement
from curvedit.evaluation.bootstrap import paired_difference, ratio
from curvedit.evaluation.decoding import greedy_continuations
from curvedit.evaluation.divergence import Divergence
from curvedit.evaluation.extraction_strength import ExtractionStrength
from curvedit.evaluation.measure import Measure, Run
from curvedit.evaluation.ndcg import NDCG
from curvedit.evaluation.perplexity import Perplexity
from curvedit.evaluation.prompts import Prompts, usual_variants
from curvedit.evaluation.recitation import Recitation
from curvedit.evaluation.relearning import Relearning, relearn
from curvedit.evaluation.rounding import Rounding, rounded
from curvedit.evaluation.sampled_extraction import SampledExtraction
from curvedit.evaluation.stage import evaluate
from curvedit.evaluation.suite import Suite
from curvedit.evaluation.task_items import FAMILIES
from curvedit.evaluation.tasks import Tasks
from curvedit.evaluation.teacher_forcing import Forced, Sampling, forced, recites
from curvedit.evaluation.text import TextMeasure
from curvedit.evaluation.token_recall import TokenRecall
from curvedit.evaluation.variants import perturbed, shifted, shorter
from curvedit.models import CausalityError
from curvedit.report import Meaning, Metric

__all__ = [
    "FAMILIES",
    "NDCG",
    "Accuracy",
    "Agreement",
    "CausalityError",
    "Divergence",
    "ExtractionStrength",
    "Forced",
    "Meaning",
    "Measure",
    "Metric",
    "Passages",
    "Perplexity",
    "Prompts",
    "Recitation",
    "Relearning",
    "Rounding",
    "Run",
    "SampledExtraction",
    "Sampling",
    "Suite",
    "Tasks",
    "TextMeasure",
    "TokenRecall",
    "evaluate",
    "forced",
    "greedy_continuations",
    "paired_difference",
    "perturbed",
    "ratio",
    "recites",
    "relearn",
    "rounded",
    "shifted",
    "shorter",
    "usual_variants",
]
