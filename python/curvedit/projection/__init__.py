"""Stage 3, project: a model's weights and a Selection in, edited weights out."""

from curvedit.editing import Edit, TargetEdit
from curvedit.projection.stage import project, project_each

__all__ = ["Edit", "TargetEdit", "project", "project_each"]
