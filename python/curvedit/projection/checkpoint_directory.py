"""Projection on disk: a checkpoint directory and Selections in, edited copies of it out.

A shard is copied as it is, and the byte ranges of targeted tensors are then overwritten. Dtype and
shape stay the same, so nothing else in the file moves.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from curvedit.checks import require_new_directory
from curvedit.files import document_hash, new_directory
from curvedit.projection.checkpoint_files import Checkpoint, read_checkpoint
from curvedit.projection.places import Place, find_places
from curvedit.projection.stored import stored_tensors as stored_tensors
from curvedit.projection.weight import TargetEdit, edit_weight, rotate_once
from curvedit.selection import Selection, summarise_selection

_POINTS = 12  # of a polyline in the record, which is about 1 KB for each target


def edit_checkpoint(
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
    for out, _ in edits:
        _require_outside(out, source)
    checkpoint = read_checkpoint(source)
    union = {name: target for _, selection in edits for name, target in selection.items()}
    places = find_places(checkpoint.directory, union, checkpoint.tensors)
    size = checkpoint.bytes
    with ExitStack() as stack:
        parts = [
            stack.enter_context(
                new_directory("out", out, needed_bytes=size * (len(edits) - number))
            )
            for number, (out, _) in enumerate(edits)
        ]
        for path in checkpoint.copied:
            for part in parts:
                (part / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(checkpoint.directory / path, part / path)
        selections = [selection for _, selection in edits]
        done = _overwrite(places, selections, parts, removed_scale, backend)
        for selection, part, its in zip(selections, parts, done, strict=True):
            record = _record(checkpoint, selection, removed_scale, places, its)
            (part / "curvedit.json").write_text(_spelled(record))
    return done


def _overwrite(
    places: Mapping[str, Place],
    selections: Sequence[Selection],
    parts: Sequence[Path],
    removed_scale: float,
    backend: str | None,
) -> list[dict[str, TargetEdit]]:
    """Edit every target in each of the copies, one weight in memory at a time."""
    done: list[dict[str, TargetEdit]] = [{} for _ in selections]
    for name, (tensor, transposed) in places.items():
        weight = tensor.read()
        weight = weight.T if transposed else weight
        wanted = [number for number, selection in enumerate(selections) if name in selection]
        among = [selections[number] for number in wanted]
        components = rotate_once(name, weight, among, backend)
        for number, selection in zip(wanted, among, strict=True):
            edited, done[number][name] = edit_weight(
                name, weight, selection, removed_scale, backend, components
            )
            tensor.write(edited.T if transposed else edited, parts[number] / tensor.file.name)
    return done


def _require_outside(out: Path, source: Path) -> None:
    """Refuse, before any work, a directory that cannot be made or overlaps the source."""
    require_new_directory("out", out)
    place, model = out.resolve(), source.resolve()
    if place == model or model in place.parents or place in model.parents:
        raise ValueError(f"out: expected a directory outside the model's, got {out}")


def _record(
    checkpoint: Checkpoint,
    selection: Selection,
    removed_scale: float,
    places: Mapping[str, Place],
    edits: dict[str, TargetEdit],
) -> dict[str, Any]:
    targets = {
        summary.name: {
            **summary.to_json(),
            **edits[summary.name].to_json(),
            "key": places[summary.name][0].key,
            "file": places[summary.name][0].file.name,
        }
        for summary in summarise_selection(selection, points=_POINTS)
    }
    left_out = {"left_out": list(checkpoint.left_out)} if checkpoint.left_out else {}
    record = {
        "tool": f"curvedit {version('curvedit')}",
        "source": checkpoint.directory.name,
        "recipe": {**selection.recipe, "removed_scale": removed_scale},
        **left_out,
        "targets": targets,
    }
    return {**record, "sha256": document_hash(record)}


def _spelled(record: Mapping[str, Any]) -> str:
    """Return a record as JSON with a line for each target."""
    lines = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps(target)}"
        for name, target in record["targets"].items()
    )
    rest = {key: value for key, value in record.items() if key != "targets"}
    return f'{json.dumps(rest, indent=2)[:-2]},\n  "targets": {{\n{lines}\n  }}\n}}\n'
