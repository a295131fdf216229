"""What was measured, how the edit came about, and its rendering as text and as a page."""

from curvedit.report.metrics import MEASURES, Metric, Metrics
from curvedit.report.reference import Reference
from curvedit.report.value import Control, Report, Stage, require_same_data

__all__ = [
    "MEASURES",
    "Control",
    "Metric",
    "Metrics",
    "Reference",
    "Report",
    "Stage",
    "require_same_data",
]
