"""Stage 3, project: weights and a Selection become edited weights."""

from curvedit.projection.stage import Edit, project, project_each
from curvedit.projection.weight import TargetEdit

__all__ = ["Edit", "TargetEdit", "project", "project_each"]
