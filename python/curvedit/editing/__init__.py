"""Edits of a model's weights, in memory or on disk: checked, recorded, and undone or written whole.

The stages that edit, ``project`` and ``forget``, say what each weight becomes. What a selection
makes of a weight, and the damage that an edit does, are here for all stages.
"""

from curvedit.editing.checkpoint_directory import Description, edit_checkpoint, require_outside
from curvedit.editing.damage import (
    Damage,
    Unedited,
    count_terms,
    held_out,
    measure_damage,
    share_right,
)
from curvedit.editing.fitted import FittedWeight
from curvedit.editing.in_memory import editable
from curvedit.editing.value import Edit, Original, TargetEdit, restore, restored_on_error
from curvedit.editing.weight import edit_weight, require_scale, rotate_once

__all__ = [
    "Damage",
    "Description",
    "Edit",
    "FittedWeight",
    "Original",
    "TargetEdit",
    "Unedited",
    "count_terms",
    "edit_checkpoint",
    "edit_weight",
    "editable",
    "held_out",
    "measure_damage",
    "require_outside",
    "require_scale",
    "restore",
    "restored_on_error",
    "rotate_once",
    "share_right",
]
