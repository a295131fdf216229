"""Edits of a model's weights, in memory or on disk: checked, recorded, and undone or written whole.

The stages that edit, ``project`` and ``forget``, say what each weight becomes.
"""

from curvedit.editing.checkpoint_directory import Description, edit_checkpoint, require_outside
from curvedit.editing.fitted import FittedWeight
from curvedit.editing.in_memory import editable
from curvedit.editing.value import Edit, Original, TargetEdit, restore, restored_on_error

__all__ = [
    "Description",
    "Edit",
    "FittedWeight",
    "Original",
    "TargetEdit",
    "edit_checkpoint",
    "editable",
    "require_outside",
    "restore",
    "restored_on_error",
]
