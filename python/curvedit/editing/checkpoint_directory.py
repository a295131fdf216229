"""Edits on disk: a checkpoint directory in, edited copies of it out.

A shard is copied as it is, and the byte ranges of targeted tensors are then overwritten. Dtype and
shape stay the same, so nothing else in the file moves.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from curvedit.checks import require_new_directory
from curvedit.editing.checkpoint_files import Checkpoint, read_checkpoint
from curvedit.editing.fitted import FittedWeight
from curvedit.editing.place import Place
from curvedit.editing.places import find_places
from curvedit.editing.stored import stored_tensors as stored_tensors
from curvedit.files import document_hash, new_directory
from curvedit.meter import beat

# Takes a target and its weight (d_out, d_in), and gives its edited weight in each new directory;
# None leaves it as it is there.
EditWeight = Callable[[str, Tensor], Sequence[Tensor | None]]


@dataclass(frozen=True)
class Description:
    """What ``curvedit.json`` says of one edit."""

    recipe: Mapping[str, Any]
    targets: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)  # other entries of the record


def edit_checkpoint(
    source: Path,
    outs: Sequence[Path],
    targets: Mapping[str, FittedWeight],
    edit: EditWeight,
    describe: Callable[[int], Description],
) -> None:
    """Write edited checkpoints; every target is verified before anything is written.

    Args:
        source: A directory with safetensors, config and tokenizer, as ``save_pretrained`` writes.
        outs: New directories.
        targets: The weights to edit in any of them.
        edit: Gives the edited weights of a target; called once for each, one weight in memory at a
            time.
        describe: Gives what ``curvedit.json`` says of the edit of this number, once all weights are
            written.

    Raises:
        FileNotFoundError: ``source`` is not a directory, or has no safetensors.
        FileExistsError: a new directory is not empty.
        ValueError: a target is missing, is not the fitted weight, or is tied to another; a file is
            damaged; a symlink leads out of ``source``.
        OSError: a directory cannot be written; nothing is left behind.
    """
    for out in outs:
        require_outside(out, source)
    checkpoint = read_checkpoint(source)
    places = find_places(checkpoint.directory, targets, checkpoint.tensors)
    size = checkpoint.bytes
    with ExitStack() as stack:
        parts = [
            stack.enter_context(new_directory("out", out, needed_bytes=size * (len(outs) - number)))
            for number, out in enumerate(outs)
        ]
        for path in checkpoint.copied:
            for part in parts:
                (part / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(checkpoint.directory / path, part / path)
                beat()
        for name, place in places.items():
            weights = edit(name, place.read())
            for part, edited in zip(parts, weights, strict=True):
                if edited is not None:
                    place.write(edited, part)
        for number, part in enumerate(parts):
            record = _record(checkpoint, places, describe(number))
            (part / "curvedit.json").write_text(_spelled(record))


def require_outside(out: Path, source: Path) -> None:
    """Refuse, before any work, a directory that cannot be made or overlaps the source."""
    require_new_directory("out", out)
    place, model = out.resolve(), source.resolve()
    if place == model or model in place.parents or place in model.parents:
        raise ValueError(f"out: expected a directory outside the model's, got {out}")


def _record(
    checkpoint: Checkpoint,
    places: Mapping[str, Place],
    edit: Description,
) -> dict[str, Any]:
    targets = {name: {**entry, **places[name].to_json()} for name, entry in edit.targets.items()}
    left_out = {"left_out": list(checkpoint.left_out)} if checkpoint.left_out else {}
    record = {
        "tool": f"curvedit {version('curvedit')}",
        "source": checkpoint.directory.name,
        "recipe": dict(edit.recipe),
        **edit.facts,
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
