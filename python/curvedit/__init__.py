"""Edit trained networks by the curvature of their loss.

Four stages, four values::

    model + batches --fit--> Factors --rank--> Selection
    weights + Selection --project--> edited weights --evaluate--> Report
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from curvedit.data import image_batches, token_batches
from curvedit.factors import Factors
from curvedit.fitting import fit
from curvedit.forgetting import forget
from curvedit.ops import torch_library as torch_library  # registers torch.ops.curvedit
from curvedit.projection import Edit, project, project_each
from curvedit.ranking import rank
from curvedit.selection import Selection, load_selection, save_selection

if TYPE_CHECKING:
    from curvedit.evaluation import Passages, Suite, evaluate
    from curvedit.mining import mine
    from curvedit.report import Report

    __version__: str

__all__ = [
    "Edit",
    "Factors",
    "Passages",
    "Report",
    "Selection",
    "Suite",
    "evaluate",
    "fit",
    "forget",
    "image_batches",
    "load_selection",
    "mine",
    "project",
    "project_each",
    "rank",
    "save_selection",
    "token_batches",
]

# Loaded when first used: an edit needs no measures, drawings or pages.
_LATER = {
    "Passages": "curvedit.evaluation",
    "Report": "curvedit.report",
    "Suite": "curvedit.evaluation",
    "evaluate": "curvedit.evaluation",
    "mine": "curvedit.mining",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # reading it takes milliseconds
        return version("curvedit")
    if name in ("evaluation", "mining", "report"):
        return import_module(f"curvedit.{name}")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
