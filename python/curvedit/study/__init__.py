"""A study: what forgetting costs, by every criterion, control and the targeted mode."""

from curvedit.study.arms import KINDS
from curvedit.study.material import Material, usual_places
from curvedit.study.preset import PRESETS, Inputs, prepare
from curvedit.study.settings import Settings
from curvedit.study.stage import study
from curvedit.study.table import render as render_table

__all__ = [
    "KINDS",
    "PRESETS",
    "Inputs",
    "Material",
    "Settings",
    "prepare",
    "render_table",
    "study",
    "usual_places",
]
