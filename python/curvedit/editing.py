"""The edit of one weight: what both forms of ``project``, in memory and by file, apply."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvedit import linear, ops
from curvedit.check import require_finite, require_shape
from curvedit.selection import TargetSelection


@dataclass(frozen=True)
class TargetEdit:
    """What happened to one weight."""

    kept: float  # share of components kept
    change: float  # |W' - W| / |W|, Frobenius
    backend: str
    sha256_before: str
    sha256_after: str


def require_scale(removed_scale: float) -> float:
    """Return the scale of the removed part; raise ``ValueError`` unless it is finite."""
    if not math.isfinite(removed_scale):
        raise ValueError(f"removed_scale: expected a finite number (0 deletes, 1 is the identity), got {removed_scale}")
    return float(removed_scale)


def require_fitted(name: str, weight: Tensor, target: TargetSelection) -> None:
    """Refuse a weight ``(d_out, d_in)`` that is not the one the target was fitted on.

    Raises:
        ValueError: shape or hash differ, or the weight is not finite.
    """
    require_shape(f"model: the weight of {name!r}", weight, target.shape)
    require_finite(f"model: the weight of {name!r}", weight)
    if target.weight_sha256 and not is_fitted(weight, target):
        raise ValueError(
            f"model: the weight of {name!r} is not the one the factors were fitted on "
            "(another model, or already edited); use the factors' own model, or fit again"
        )


def is_fitted(weight: Tensor, target: TargetSelection) -> bool:
    """Whether a weight, cast to the dtype it was fitted in, has the target's hash."""
    dtype = getattr(torch, target.weight_dtype.removeprefix("torch."), weight.dtype)
    return linear.weight_hash(weight.to(dtype)) == target.weight_sha256


def rotate_once(
    weight: Tensor,  # (d_out, d_in)
    targets: Sequence[TargetSelection],
    backend: str | None,
) -> Tensor | None:
    """The components that several selections of one weight need, or None where nothing is shared.

    A staircase that keeps most is left out: its complement is cheaper to rotate.
    """
    shared = [target.limits for target in targets if _shares(target) and target.limits is not None]
    if len(shared) < 2:
        return None
    out, inputs = _bases(targets[0], weight)
    most = torch.stack(shared).amax(dim=0).to(weight.device)
    components: Tensor = ops.call("staircase_rotate", weight, out, inputs, most, backend=backend)
    return components


def edit_weight(
    weight: Tensor,  # (d_out, d_in)
    target: TargetSelection,
    removed_scale: float,
    backend: str | None,
    components: Tensor | None = None,
) -> tuple[Tensor, TargetEdit]:
    """The edited weight, ``kept + removed_scale * removed``, in the weight's dtype.

    Computed in float32 and rounded to nearest at the end (Merullo et al., arXiv:2510.24256,
    section 5). A selection that keeps everything, and the scale 1, return the weight's own values.
    ``components`` are what :func:`rotate_once` returned for selections this one is among.
    """
    before = linear.weight_hash(weight)
    share = target.kept / weight.numel()
    if target.keeps_all or removed_scale == 1.0:
        return weight.clone(), TargetEdit(share, 0.0, "none", before, before)
    out, inputs = _bases(target, weight)
    if target.limits is None:
        if target.mask is None:
            raise ValueError(f"selection of {target.name}: expected limits or a mask, got neither")
        op, arguments = "masked_project", (weight, out, inputs, target.mask.to(weight.device))
    elif components is not None and _shares(target):
        op, arguments = "staircase_restore", (components, out, inputs, target.limits.to(weight.device))
    else:
        op, arguments = "staircase_project", (weight, out, inputs, target.limits.to(weight.device))
    used = ops.choose(op, *arguments, backend=backend).backend
    kept = ops.call(op, *arguments, backend=backend)
    if removed_scale:
        kept = kept.lerp_(weight.float(), removed_scale)
    edited = kept.to(weight.dtype)
    change = float((edited.float() - weight.float()).norm() / weight.float().norm())
    return edited, TargetEdit(share, change, used, before, linear.weight_hash(edited))


def _shares(target: TargetSelection) -> bool:
    return target.limits is not None and 2 * target.kept <= target.shape[0] * target.shape[1]


def _bases(target: TargetSelection, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors beside the weight, of the spectra the selection was made from."""
    out, inputs = target.bases(weight)
    for name, basis, values in (("output", out, target.values_out), ("input", inputs, target.values_in)):
        if values is not None and not torch.equal(values, basis.values):
            raise ValueError(
                f"selection of {target.name}: its {name} basis is not the one it was made from "
                "(another factor's, or decomposed again); run rank again"
            )
    return out.vectors.to(weight.device, torch.float32), inputs.vectors.to(weight.device, torch.float32)
