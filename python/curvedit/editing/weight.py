"""The edit of one weight: a weight and its selection in, the edited weight and a record out.

Both forms of ``project``, in memory and on disk, use it, and ``rank`` where it measures.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from curvedit.checks import require_finite
from curvedit.editing.value import TargetEdit
from curvedit.models import weight_hash
from curvedit.ops import call, choose
from curvedit.selection import Selection, TargetSelection


def require_scale(removed_scale: float) -> float:
    """Return the scale of the removed part; raise ``ValueError`` unless it is finite."""
    if not math.isfinite(removed_scale):
        raise ValueError(
            "removed_scale: expected a finite number (0 deletes, 1 is the identity), "
            f"got {removed_scale}"
        )
    return float(removed_scale)


def rotate_once(
    name: str,
    weight: Tensor,  # (d_out, d_in)
    selections: Sequence[Selection],
    backend: str | None,
) -> Tensor | None:
    """Return the components of one target that several selections need, or None if fewer than two.

    A staircase that keeps more than half is left out, because rotating its complement is cheaper.
    """
    among = [selection for selection in selections if name in selection]
    shared = [
        limits for selection in among if (limits := _shared_limits(selection[name])) is not None
    ]
    if len(shared) < 2:
        return None
    out, inputs = _bases(among[0], name, weight)
    most = torch.stack(shared).amax(dim=0).to(weight.device)
    components: Tensor = call("staircase_rotate", weight, out, inputs, most, backend=backend)
    return components


def edit_weight(
    name: str,
    weight: Tensor,  # (d_out, d_in)
    selection: Selection,
    removed_scale: float,
    backend: str | None,
    components: Tensor | None = None,
) -> tuple[Tensor, TargetEdit]:
    """Return the edited weight of one target, ``kept + removed_scale * removed``, and its record.

    Computed in float32 and rounded to the weight's dtype at the end (Merullo et al.,
    arXiv:2510.24256, section 5). A selection that keeps everything, and a scale of 1, return a copy
    of the weight. ``components`` is what :func:`rotate_once` returned for a set of selections that
    includes this one.

    Raises:
        ValueError: the edited weight is not finite, or the bases are damaged or others.
    """
    target, before = selection[name], weight_hash(weight)
    if target.keeps_all or removed_scale == 1.0:
        return weight.clone(), TargetEdit(target.kept_share, 0.0, "none", before, before)
    out, inputs = _bases(selection, name, weight)
    if target.limits is None:
        if target.mask is None:
            raise ValueError(f"selection of {name}: expected limits or a mask, got neither")
        op, arguments = "masked_project", (weight, out, inputs, target.mask.to(weight.device))
    elif components is not None and _shared_limits(target) is not None:
        op, arguments = (
            "staircase_restore",
            (components, out, inputs, target.limits.to(weight.device)),
        )
    else:
        op, arguments = "staircase_project", (weight, out, inputs, target.limits.to(weight.device))
    project = choose(op, *arguments, backend=backend)
    kept: Tensor = project(*arguments)
    if removed_scale:
        kept = kept.lerp_(weight.float(), removed_scale)
    edited = kept.to(weight.dtype)
    require_finite(f"selection: the edited weight of {name!r}, {weight.dtype}", edited)
    change = float((edited.float() - weight.float()).norm() / (weight.float().norm() or 1.0))
    return edited, TargetEdit(target.kept_share, change, project.label, before, weight_hash(edited))


def _shared_limits(target: TargetSelection) -> Tensor | None:
    """Return the limits of a staircase that keeps at most half, or None for anything else."""
    return (
        target.limits
        if target.limits is not None and 2 * target.kept <= target.shape[0] * target.shape[1]
        else None
    )


def _bases(selection: Selection, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and input eigenvectors, float32, on the weight's device."""
    out, inputs = selection.bases(name, weight)
    return out.vectors.to(weight.device, torch.float32), inputs.vectors.to(
        weight.device, torch.float32
    )
