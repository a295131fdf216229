"""``curvedit project``: checkpoint directory and selection to an edited checkpoint directory.

With the directory of a sweep, one edited checkpoint for each of its selections.
"""

import argparse
from pathlib import Path

from curvedit import projection
from curvedit.checks import require_new_directory
from curvedit.cli.config import record
from curvedit.cli.verb import Options, Verb, say
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


def _execute(options: Options) -> None:
    out, source = Path(options.out), Path(options.selection)
    sweep = [] if (source / "selection.json").is_file() else sorted(source.glob("*/selection.json"))
    if not sweep:
        edit = projection.project(
            options.model, load_selection(source), out=out, removed_scale=options.removed_scale
        )
        record(options, out)
        say(f"{out}: {len(edit.targets)} targets edited in {edit.seconds:.1f} s")
        return
    require_new_directory("out", out)
    selections = [load_selection(path.parent) for path in sweep]
    places = [out / path.parent.name for path in sweep]
    for edit in projection.project_each(
        options.model, selections, out=places, removed_scale=options.removed_scale
    ):
        say(f"{edit.out}: {len(edit.targets)} targets edited in {edit.seconds:.1f} s")
    record(options, out)


PROJECT = Verb("project", "write a checkpoint edited by a selection", _add_flags, _execute)
