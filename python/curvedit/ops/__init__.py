"""The door to the kernels: an op is named, and a backend is chosen that runs it.

impl = ops.choose("syrk_accumulate", out, x, weight)  # checks the arguments
impl(out, x, weight)                                  # impl.label names the backend
"""

from curvedit.kernels import tiles
from curvedit.kernels.staircase_project_plan import plan
from curvedit.ops.dispatch import (
    VARIABLE,
    Implementation,
    Record,
    backends,
    call,
    choose,
    explain,
    operations,
    parse_backends,
    why_by_name_only,
)

__all__ = [
    "VARIABLE",
    "Implementation",
    "Record",
    "backends",
    "call",
    "choose",
    "explain",
    "operations",
    "parse_backends",
    "plan",
    "tiles",
    "why_by_name_only",
]
