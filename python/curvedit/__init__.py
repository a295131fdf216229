"""Edit trained networks by the curvature of their loss.

Four stages, four values::

    model + batches --fit--> Factors --rank--> Selection
    weights + Selection --project--> edited weights --evaluate--> Report
"""

from importlib.metadata import version as _version

from curvedit.data import image_batches, token_batches
from curvedit.evaluation import Passages, Suite, evaluate
from curvedit.factors import Factors
from curvedit.fitting import fit
from curvedit.ops import torch_library as torch_library  # registers torch.ops.curvedit
from curvedit.projection import Edit, project, project_each
from curvedit.ranking import rank
from curvedit.report import Report
from curvedit.selection import Selection, load_selection, save_selection

__version__ = _version("curvedit")

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
