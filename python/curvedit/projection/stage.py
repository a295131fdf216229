"""Stage 3, project: a model's weights and a Selection in, edited weights out."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from curvedit.editing import (
    Edit,
    Original,
    TargetEdit,
    edit_weight,
    editable,
    require_scale,
    restored_on_error,
    rotate_once,
)
from curvedit.models import exclusive, weight_of
from curvedit.projection.on_disk import project_checkpoint
from curvedit.selection import Selection


def project(
    model: nn.Module | str | Path,
    selection: Selection,
    *,
    out: str | Path | None = None,
    removed_scale: float = 0.0,
    backend: str | None = None,
) -> Edit:
    """Project weights onto the selected components.

    ``W' = U_G (C * M) U_A^T`` with ``C = U_G^T W U_A``, where ``M`` is 1 for the selected
    components and ``removed_scale`` elsewhere. A module is edited in place. A checkpoint directory
    is copied to the new directory ``out``; only the targeted tensors are read and rewritten.

    Args:
        model: A module, or the path of a directory with safetensors.
        selection: What ``rank`` returned for this model.
        out: The new directory; only if ``model`` is a directory.
        removed_scale: Factor applied to the removed part: 0 deletes it, 1 changes nothing.
        backend: Backend of the projection; None lets ``ops`` choose.

    Returns:
        The edit, with each target's kept share, relative change and backend, and ``undo()``.

    Raises:
        ValueError: a target is missing, is not the weight the factors were fitted on, is tied to
            another parameter, or is not finite; or an argument is out of range. Nothing changed.
        RuntimeError: another thread is fitting or measuring the model.
        FileNotFoundError: ``model`` is a path without safetensors.
        FileExistsError: ``out`` is not empty.
        OSError: ``out`` cannot be written; nothing is left behind.

    Source:
        Merullo et al., arXiv:2510.24256, section 5.
    """
    scale = require_scale(removed_scale)
    start = time.perf_counter()
    if not isinstance(model, nn.Module):
        if out is None:
            raise ValueError("out: expected a new directory for an edited checkpoint, got None")
        (targets,) = project_checkpoint(Path(model), [(Path(out), selection)], scale, backend)
        return Edit(targets, time.perf_counter() - start, Path(out))
    if out is not None:
        raise ValueError(
            "out: a module is edited in place; call its save_pretrained(out) afterwards"
        )
    with exclusive(model):
        return _edit(editable(model, selection.targets), selection, scale, backend, {})


def project_each(
    model: nn.Module | str | Path,
    selections: Sequence[Selection],
    *,
    out: Sequence[str | Path] | None = None,
    removed_scale: float = 0.0,
    backend: str | None = None,
) -> Iterator[Edit]:
    """Project with each of several selections, such as a sweep over ``keep_mass``.

    The work is shared: weights are rotated into the bases once, and each selection then costs only
    the rotation back.

    Args:
        model: A module, edited in place with one selection at a time; or a checkpoint directory.
        selections: Selections by the same criterion, from the same factors.
        out: One new directory per selection; only if ``model`` is a directory.
        removed_scale: As for ``project``.
        backend: As for ``project``.

    Returns:
        The edits, in order. On a module one edit is applied at a time: each lasts until the next is
        requested, and the original weights are restored at the end; meanwhile a float32 copy of the
        targeted weights is held. Directories are all written, or none, before this returns.

    Raises:
        ValueError: as ``project``; or the selections differ in criterion or factors, or their
            number is not that of ``out``.
        FileNotFoundError: ``model`` is a path without safetensors.
        FileExistsError: one of ``out`` is not empty.
        OSError: one of ``out`` cannot be written; nothing is left behind.
    """
    scale = require_scale(removed_scale)
    _require_alike(selections)
    if not isinstance(model, nn.Module):
        return _write_each(Path(model), selections, out, scale, backend)
    if out is not None:
        raise ValueError(
            "out: a module is edited in place; call its save_pretrained(out) in the loop"
        )
    union = {name: target for selection in selections for name, target in selection.items()}
    return _edit_each(editable(model, union), list(selections), scale, backend)


def _require_alike(selections: Sequence[Selection]) -> None:
    """Raise ``ValueError`` unless the selections share a criterion and factors."""
    kinds = {
        (each.recipe.get("criterion"), json.dumps(each.recipe.get("factors")))
        for each in selections
    }
    if len(kinds) > 1:
        criteria = sorted({str(criterion) for criterion, _ in kinds})
        raise ValueError(
            "selections: expected one criterion and the same factors, "
            f"got {criteria} from {len({made for _, made in kinds})} factors"
        )


def _write_each(
    model: Path,
    selections: Sequence[Selection],
    out: Sequence[str | Path] | None,
    scale: float,
    backend: str | None,
) -> Iterator[Edit]:
    if out is None or len(out) != len(selections):
        raise ValueError(
            f"out: expected {len(selections)} new directories, one for each selection, "
            f"got {len(out or [])}"
        )
    if len({Path(directory).resolve() for directory in out}) < len(out):
        raise ValueError(
            f"out: expected different directories, got {[str(directory) for directory in out]}"
        )
    start = time.perf_counter()
    pairs = [
        (Path(directory), selection) for directory, selection in zip(out, selections, strict=True)
    ]
    written = project_checkpoint(model, pairs, scale, backend)
    seconds = (time.perf_counter() - start) / max(1, len(pairs))
    return iter(
        [Edit(targets, seconds, place) for targets, (place, _) in zip(written, pairs, strict=True)]
    )


def _edit_each(
    modules: dict[str, nn.Module], selections: list[Selection], scale: float, backend: str | None
) -> Iterator[Edit]:
    components: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, module in modules.items():
            rotated = rotate_once(name, weight_of(module), selections, backend)
            if rotated is not None:
                components[name] = rotated
    for selection in selections:
        with _edit(modules, selection, scale, backend, components) as edit:
            yield edit


def _edit(
    modules: dict[str, nn.Module],
    selection: Selection,
    scale: float,
    backend: str | None,
    components: dict[str, Tensor],
) -> Edit:
    start = time.perf_counter()
    edited: dict[str, TargetEdit] = {}
    with restored_on_error() as originals:
        for name in selection:
            weight = weight_of(modules[name])
            new, edited[name] = edit_weight(
                name, weight, selection, scale, backend, components.get(name)
            )
            originals.append(Original.of(name, modules[name]))
            weight.copy_(new)
    return Edit(edited, time.perf_counter() - start, _originals=originals)
