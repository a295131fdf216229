"""The Report: what was measured, how the edit was made, and both as text and as a page."""

from curvedit.report import parts, style, svg
from curvedit.report.metrics import (
    Meaning,
    Metric,
    Metrics,
    Units,
    meaning_of,
    number,
    register,
    spell,
)
from curvedit.report.record import read_record
from curvedit.report.reference import Kept, Reference
from curvedit.report.value import Control, Report, Stage, require_same_data

__all__ = [
    "Control",
    "Kept",
    "Meaning",
    "Metric",
    "Metrics",
    "Reference",
    "Report",
    "Stage",
    "Units",
    "meaning_of",
    "number",
    "parts",
    "read_record",
    "register",
    "require_same_data",
    "spell",
    "style",
    "svg",
]
