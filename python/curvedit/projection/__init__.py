"""Stage 3, project: a model's weights and a Selection in, edited weights out."""

from curvedit.projection.stage import Edit, project, project_each
from curvedit.projection.weight import TargetEdit

__all__ = ["Edit", "TargetEdit", "project", "project_each"]
