"""``curvedit forget``: checkpoint, factors and passages to a checkpoint that lacks the passages."""

import argparse
from pathlib import Path
from typing import Any

from curvedit import data, forgetting
from curvedit.cli.config import record
from curvedit.cli.inputs import (
    add_data_flags,
    add_device_flag,
    add_passage_flags,
    batches,
    passages,
)
from curvedit.cli.places import require_kind, require_place, require_room, size_of
from curvedit.cli.skeleton import read_skeleton, require_data_fits, require_passages_fit
from curvedit.cli.verb import Job, Options, Result, Verb, add_progress_flag, require_at_least
from curvedit.factors import Factors
from curvedit.models import conversion_hint, match_names


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="checkpoint directory with safetensors"
    )
    parser.add_argument("--factors", required=True, metavar="DIR", help="what fit wrote")
    add_passage_flags(
        parser, "to forget; or one .safetensors file of wrongly labelled images", required=True
    )
    parser.add_argument(
        "--retain", metavar="FILE", help="passages to keep reciting, or labelled images"
    )
    parser.add_argument(
        "--holdout",
        required=True,
        nargs="+",
        metavar="PATH",
        help="general text, or images, on which the damage is measured; given as for fit --data",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new checkpoint directory")
    parser.add_argument(
        "--targets", nargs="+", metavar="PATTERN", help="choose among the fitted targets (all)"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=0.02,
        metavar="NATS",
        help="damage allowed per position: divergence from the unedited model (0.02)",
    )
    parser.add_argument(
        "--damping",
        type=float,
        default=forgetting.DAMPING,
        metavar="D",
        help="added to the curvature, in units of its mean (%(default)g)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=forgetting.STEPS,
        metavar="N",
        help="steps to the budget, if all of it is needed (%(default)d)",
    )
    add_device_flag(parser)
    add_data_flags(parser)
    add_progress_flag(parser)


def _prepare(options: Options) -> Job:
    require_at_least(options, window=2, batch_size=1, max_tokens=2, prefix_length=1)
    require_at_least(options, suffix_length=1, steps=1)
    forgetting.require_numbers(options.budget, options.damping, options.steps, options.batch_size)
    out = require_place(options.out, outside=options.model)
    if not Path(options.model).is_dir():
        raise FileNotFoundError(
            f"model: expected a checkpoint directory with safetensors, got {options.model}"
            f"{conversion_hint(options.model)}"
        )
    require_room(out, size_of(options.model))
    place = require_kind("factors", Path(options.factors), "a factor directory", "fit")
    factors = Factors.load(place)
    match_names(options.targets or "*", list(factors))
    skeleton = read_skeleton("model", options.model)
    given = {name: _read(options, name) for name in ("passages", "retain")}
    for name, each in given.items():
        if isinstance(each, data.Passages):
            require_passages_fit(skeleton, each, name)
    text = batches(options.holdout, options, name="holdout")
    require_data_fits("holdout", skeleton, text)
    return lambda: _forget(options, out, factors, given, text)


def _read(options: Options, name: str) -> Any:
    path = getattr(options, name)
    if path is None:
        return None
    if path.endswith(".safetensors"):
        return data.image_batches(path, batch_size=options.batch_size)
    return passages(options, path, options.passages_split if name == "passages" else None)


def _forget(
    options: Options, out: Path, factors: Factors, given: dict[str, Any], text: Any
) -> Result:
    edit = forgetting.forget(
        options.model,
        factors,
        given["passages"],
        retain=given["retain"],
        holdout=text,
        targets=options.targets,
        budget=options.budget,
        damping=options.damping,
        steps=options.steps,
        out=out,
        device=options.device,
        batch_size=options.batch_size,
        progress=options.progress,
    )
    record(options, out)
    facts = {"out": out, "seconds": round(edit.seconds, 3), **edit.record}
    return Result(f"{_table(edit.record)}\n{out}: {_summary(edit.record, edit.seconds)}", facts)


def _table(found: Any) -> str:
    """One line before any step and one after each."""
    rows = [("step", "recited", "right", "damage", "predicted", "loss")]
    rows.append(("-", str(found["before"]["near"]), f"{found['before']['right']:.1%}", "", "", ""))
    for number, step in enumerate(found["taken"], 1):
        nats = (f"{step['measured']:.4f}", f"{step['expected']:.4f}", f"{step['loss']:+.4f}")
        rows.append((str(number), str(step["near"]), f"{step['right']:.1%}", *nats))
    return "\n".join("  ".join(f"{cell:>9}" for cell in row) for row in rows)


def _summary(found: Any, seconds: float) -> str:
    last = found["taken"][-1]
    return (
        f"{found['stopped']} after {len(found['taken'])} steps, {seconds:.1f} s; of "
        f"{found['recited']} recited passages {last['near']} still are, at "
        f"{last['measured']:.4f} of {found['budget']:g} nats per position"
    )


FORGET = Verb(
    "forget", "forget given passages, within a budget of damage to all else", _add_flags, _prepare
)
