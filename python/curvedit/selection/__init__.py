"""The value that ``rank`` returns and ``project`` takes: which components are kept."""

from curvedit.selection.summary import Edited, TargetSummary, summarise_selection
from curvedit.selection.value import (
    Kinds,
    Selection,
    TargetSelection,
    load_selection,
    save_selection,
)

__all__ = [
    "Edited",
    "Kinds",
    "Selection",
    "TargetSelection",
    "TargetSummary",
    "load_selection",
    "save_selection",
    "summarise_selection",
]
