"""The value between rank and project: which components are kept, its directory, and its summary."""

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
