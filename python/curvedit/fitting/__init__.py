"""Stage 1, fit: a model and batches of data in, Factors out."""

from curvedit.fitting.memory import least_bytes
from curvedit.fitting.plan import Plan, plan_fit
from curvedit.fitting.provenance import require_coverage
from curvedit.fitting.second_pass import PER
from curvedit.fitting.snapshots import discard
from curvedit.fitting.stage import fit

__all__ = ["PER", "Plan", "discard", "fit", "least_bytes", "plan_fit", "require_coverage"]
