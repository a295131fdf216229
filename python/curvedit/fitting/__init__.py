"""Stage 1, fit: a model and batches of data in, Factors out."""

from curvedit.fitting.memory import least_bytes
from curvedit.fitting.provenance import require_coverage
from curvedit.fitting.second_pass import PER
from curvedit.fitting.snapshots import discard
from curvedit.fitting.stage import fit

__all__ = ["PER", "discard", "fit", "least_bytes", "require_coverage"]
