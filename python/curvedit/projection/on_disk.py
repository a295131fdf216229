"""Projection on disk: a checkpoint directory and Selections in, edited copies of it out."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from curvedit.editing import Description, TargetEdit, edit_checkpoint, edit_weight, rotate_once
from curvedit.selection import Selection, summarise_selection

_POINTS = 12  # of a polyline in the record, which is about 1 KB for each target


def project_checkpoint(
    source: Path, edits: Sequence[tuple[Path, Selection]], removed_scale: float, backend: str | None
) -> list[dict[str, TargetEdit]]:
    """Write edited checkpoints; every target is verified before anything is written.

    Args:
        source: A directory with safetensors, config and tokenizer, as ``save_pretrained`` writes.
        edits: New directories, and the selection to apply in each; the selections share their
            bases.
        removed_scale: Factor applied to the removed part.
        backend: Backend of the projection; None lets ``ops`` choose.

    Returns:
        For each directory, the record of each target's edit.

    Raises:
        FileNotFoundError: ``source`` is not a directory, or has no safetensors.
        FileExistsError: a new directory is not empty.
        ValueError: a target is missing, is not the fitted weight, or is tied to another; a file is
            damaged; a symlink leads out of ``source``; an edited weight is not finite.
        OSError: a directory cannot be written; nothing is left behind.
    """
    selections = [selection for _, selection in edits]
    done: list[dict[str, TargetEdit]] = [{} for _ in selections]

    def edit(name: str, weight: Tensor) -> list[Tensor | None]:
        components = rotate_once(name, weight, selections, backend)
        found: list[Tensor | None] = []
        for selection, its in zip(selections, done, strict=True):
            edited = None
            if name in selection:
                edited, its[name] = edit_weight(
                    name, weight, selection, removed_scale, backend, components
                )
            found.append(edited)
        return found

    def describe(number: int) -> Description:
        selection, its = selections[number], done[number]
        entries = {
            summary.name: {**summary.to_json(), **its[summary.name].to_json()}
            for summary in summarise_selection(selection, points=_POINTS)
        }
        return Description({**selection.recipe, "removed_scale": removed_scale}, entries)

    union = {name: target for selection in selections for name, target in selection.items()}
    edit_checkpoint(source, [out for out, _ in edits], union, edit, describe)
    return done
