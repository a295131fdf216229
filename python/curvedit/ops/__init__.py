"""The door to the kernels: ops, their backends, and which of these runs.

impl = ops.choose("syrk_accumulate", out, x, weight)   # checks the arguments; impl.label names the backend
impl(out, x, weight)
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
