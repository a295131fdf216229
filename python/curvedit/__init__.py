"""Edit trained networks by the curvature of their loss.

Four stages, four values::

    model + batches --fit--> Factors --rank--> Selection --project--> edited weights --evaluate--> Report
"""

from curvedit import library as library  # registers torch.ops.curvedit
from curvedit.data import image_batches, token_batches
from curvedit.evaluation import Passages, Suite, evaluate
from curvedit.factors import Factors
from curvedit.fitting import fit
from curvedit.projection import Edit, project, project_each
from curvedit.ranking import rank
from curvedit.report import Report
from curvedit.selection import Selection
from curvedit.store import load_selection, save_selection

__all__ = [
    "Edit",
    "Factors",
    "Passages",
    "Report",
    "Selection",
    "Suite",
    "evaluate",
    "fit",
    "image_batches",
    "load_selection",
    "project",
    "project_each",
    "rank",
    "save_selection",
    "token_batches",
]
