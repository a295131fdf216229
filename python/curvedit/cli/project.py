"""``curvedit project``: checkpoint directory and selection to an edited checkpoint directory.

With the directory of a sweep, one edited checkpoint for each of its selections.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from curvedit import projection
from curvedit.cli.config import record
from curvedit.cli.places import kind_of, members, require_kind, require_place, require_room, size_of
from curvedit.cli.verb import Job, Options, Result, Verb, add_progress_flag
from curvedit.files import new_directory
from curvedit.models import conversion_hint
from curvedit.selection import load_selection


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="checkpoint directory with safetensors"
    )
    parser.add_argument(
        "--selection",
        required=True,
        metavar="DIR",
        help="what rank wrote: one selection, or those of a sweep",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="new checkpoint directory; for a sweep, new directory of checkpoints",
    )
    parser.add_argument(
        "--removed-scale",
        type=float,
        default=0.0,
        metavar="ALPHA",
        help="scale removed components by ALPHA instead of deleting them (0)",
    )
    add_progress_flag(parser)


def _prepare(options: Options, made: frozenset[str] = frozenset()) -> Job:
    if not math.isfinite(options.removed_scale):
        raise ValueError(
            "removed_scale: expected a finite number (0 deletes, 1 is the identity), "
            f"got {options.removed_scale}"
        )
    source = Path(options.selection)
    sweep = [] if "selection" in made else _members(source)
    out = require_place(options.out, outside=options.model)
    if not Path(options.model).is_dir():
        raise FileNotFoundError(
            f"model: expected a checkpoint directory with safetensors, got {options.model}"
            f"{conversion_hint(options.model)}"
        )
    require_room(out, max(1, len(sweep)) * size_of(options.model))
    for place in sweep:
        load_selection(place)
    return lambda: _project(options, out)


def _members(source: Path) -> list[Path]:
    """The directories of a selection, or of those of a sweep.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [] if kind_of(source) == "a selection" else members(source, "selection.json")
    return found or [require_kind("selection", source, "a selection", "rank")]


def _project(options: Options, out: Path) -> Result:
    source, scale = Path(options.selection), options.removed_scale
    places = _members(source)
    if places == [source]:
        edits = [
            projection.project(options.model, load_selection(source), out=out, removed_scale=scale)
        ]
        record(options, out)
        written = [out]
    else:
        selections = [load_selection(place) for place in places]
        written = [out / place.name for place in places]
        with new_directory("out", out) as part:
            parts = [part / place.name for place in places]
            edits = list(
                projection.project_each(options.model, selections, out=parts, removed_scale=scale)
            )
            record(options, part)
    facts: list[dict[str, Any]] = [
        {
            "out": place,
            "seconds": round(edit.seconds, 3),
            "targets": {name: target.to_json() for name, target in edit.targets.items()},
        }
        for place, edit in zip(written, edits, strict=True)
    ]
    lines = [
        f"{each['out']}: {len(each['targets'])} targets edited in {each['seconds']:.1f} s"
        for each in facts
    ]
    return Result("\n".join(lines), {"out": out, "edits": facts})


PROJECT = Verb("project", "write a checkpoint edited by a selection", _add_flags, _prepare)
